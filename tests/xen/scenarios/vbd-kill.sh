# The backend is killed while the kernel reads and writes for it: dom0's kernel stays sound, which is checked at the end of any
# scenario, and the guest continues.
# needs: xpv
# timeout: 300
# Each operation takes 0.4 s, so that there are some whenever the process is killed.
modprobe null_blk gb=1 memory_backed=1 irqmode=2 completion_nsec=400000000 || fail "no null_blk"
start dom0 xpv dom0 --xen --queues 2
guest one vcpus=2 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/nullb0"]'
start_writer one
reader='(while [ ! -e /tmp/enough ]; do dd if=/dev/xvda of=/dev/null bs=1M count=2 skip=$((i * 16)) iflag=direct; done) >/dev/null 2>&1 &'
check_in_guest one "two readers run" "for i in 1 2; do $reader done"
for kill in 1 2; do
    check_writer_continues one "before kill $kill"
    stop dom0 KILL 2>/dev/null
    cat /out/dom0.log >>/out/killed.log
    start dom0 xpv dom0 --xen
    check_writer_continues one "after kill $kill"
done
check "requests were in flight" sh -c "grep -h resumed /out/dom0.log /out/killed.log | grep -qE 'in_flight=([2-9]|[1-9][0-9])'"
check_in_guest one "no error was seen" '! dmesg | grep -iE "I/O error|xvda.*error"'
