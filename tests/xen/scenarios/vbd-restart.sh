# The backend is killed and started again while a stock guest writes and reads: the guest continues, and no data is lost.
# needs: xpv
# timeout: 240
disk_file 64M
start dom0 xpv dom0 --xen
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]'
start_writer one
for kill in 1 2 3; do
    check_writer_continues one "before kill $kill"
    stop dom0 KILL 2>/dev/null
    cat /out/dom0.log >>/out/killed.log
    start dom0 xpv dom0 --xen
    check_writer_continues one "after kill $kill"
done
# An upgrade: the old process exits on SIGTERM, and the new one continues.
stop dom0
cat /out/dom0.log >>/out/killed.log
start dom0 xpv dom0 --xen
check_writer_continues one "after an upgrade"
check "its ring was resumed each time" test "$(cat /out/killed.log /out/dom0.log | grep -c 'vbd{.*resumed')" = 4
check_written one
check "the disk is detached" xl block-detach one xvda
check "its in-flight log is removed" test "$(ls /run/xpv/inflight | wc -l)" = 0
