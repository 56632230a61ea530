# Our process is killed and started again while a stock guest writes and reads: it goes on, and nothing is lost.
# needs: xpv
serve() { start dom0 xpv -v dom0 --xen; }
killed() {
    stop dom0 KILL 2>/dev/null
    cat /out/dom0.log >>/out/dom0-killed.log
}
rounds() { in_guest one 'cat /tmp/rounds' | grep -oE '^[0-9]+$'; }
beyond() { [ "$(rounds)" -gt "$1" ]; }

modprobe loop
truncate -s 64M /tmp/disk
losetup /dev/loop0 /tmp/disk
serve
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]'
check_in_guest one "a file system is made" 'mke2fs /dev/xvda >/dev/null && mount -t ext4 /dev/xvda /mnt && echo 0 >/tmp/rounds'
# Each round writes 4 MiB, flushes them, and tells their sum.
round='i=$(($(cat /tmp/rounds) + 1)); f=f$((i % 4)); dd if=/dev/urandom of=/mnt/$f bs=64k count=64 conv=fsync 2>/dev/null || break'
sums='md5sum /mnt/$f >/tmp/sum-$f; echo $i >/tmp/rounds'
check_in_guest one "a writer runs" "(while [ ! -e /tmp/enough ]; do $round; $sums; done; touch /tmp/over) >/dev/null 2>&1 &"

for kill in 1 2 3; do
    wait_for 60 "the writer to be at work" beyond "$(rounds)"
    killed
    serve
    wait_for 60 "the writer to go on after kill $kill" beyond $(($(rounds) + 1))
done
check "each time it went on where it was" test "$(cat /out/dom0*.log | grep -c 'going on where it was left')" = 3
check_in_guest one "the writer ends" 'touch /tmp/enough; until [ -e /tmp/over ]; do usleep 100000; done'
check_in_guest one "every file is as it was written" \
    'umount /mnt && mount -t ext4 /dev/xvda /mnt && cat /tmp/sum* && cat /tmp/sum* | md5sum -c'
check_in_guest one "no error was seen" '! dmesg | grep -iE "I/O error|xvda.*error"'
sum=$(in_guest one 'umount /mnt; md5sum </dev/xvda' | grep -oE '[0-9a-f]{32}')
check "the image holds the same" test "$(md5sum </dev/loop0 | cut -d' ' -f1)" = "$sum"
