# Our process is killed and started again while a stock guest writes and reads: it goes on, and nothing is lost.
# needs: xpv
# timeout: 240
disk_file 64M
start dom0 xpv dom0 --xen
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]'
write_on one
for kill in 1 2 3; do
    writes_on one "before kill $kill"
    stop dom0 KILL 2>/dev/null
    cat /out/dom0.log >>/out/killed.log
    start dom0 xpv dom0 --xen
    writes_on one "after kill $kill"
done
# An upgrade: the old process ends in order, the new one goes on.
stop dom0
cat /out/dom0.log >>/out/killed.log
start dom0 xpv dom0 --xen
writes_on one "after an upgrade"
check "its ring was resumed each time" test "$(cat /out/killed.log /out/dom0.log | grep -c 'vbd{.*resumed')" = 4
check_written one
check "the guest lets go" xl block-detach one xvda
check "nothing is kept of it" test "$(ls /run/xpv/inflight | wc -l)" = 0
