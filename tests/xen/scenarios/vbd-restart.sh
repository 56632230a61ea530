# The backend is killed and started again while a stock guest writes and reads by two queues: the guest continues, and no data is lost.
# needs: xpv
# timeout: 240
disk_file 64M
start dom0 xpv dom0 --xen --queues 2
guest one vcpus=2 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]'
check "the guest uses two queues" test "$(xenstore-read /local/domain/1/device/vbd/51712/multi-queue-num-queues)" = 2
start_writer one
for kill in 1 2 3; do
    check_writer_continues one "before kill $kill"
    stop dom0 KILL 2>/dev/null
    cat /out/dom0.log >>/out/killed.log
    start dom0 xpv dom0 --xen
    check_writer_continues one "after kill $kill"
done
# Its image is absent when the next process starts: the guest waits, and continues once it is back.
stop dom0 KILL 2>/dev/null
cat /out/dom0.log >>/out/killed.log
mv /dev/loop0 /dev/away
start dom0 xpv dom0 --xen
back=backend/vbd/1/51712
wait_for 10 "the error to name the image" \
    sh -c "xenstore-read /local/domain/0/error/$back/error | grep -q 'params: /dev/loop0: No such file'"
check "the disk is not closed" in_state /local/domain/0/$back 4
mv /dev/away /dev/loop0
check_writer_continues one "once its image is back"
check "the error is removed" sh -c "! xenstore-exists /local/domain/0/error/$back"
# An upgrade: the old process exits on SIGTERM, and the new one continues.
stop dom0
cat /out/dom0.log >>/out/killed.log
start dom0 xpv dom0 --xen
check_writer_continues one "after an upgrade"
# The later processes, in a dom0 with one processor, offer one queue: the guest keeps its two.
check "its rings were resumed each time" test "$(cat /out/killed.log /out/dom0.log | grep -c 'vbd{.*resumed')" = 10
check_written one
# A block device is discarded by BLKDISCARD; this one hands that on to its file.
before=$(stat -c %b /tmp/disk)
check_in_guest one "the files are removed, and trimmed" 'mount -t ext4 /dev/xvda /mnt && rm /mnt/f* && sync && fstrim /mnt && umount /mnt'
after=$(stat -c %b /tmp/disk)
check "the device was discarded: $before blocks before, $after after" test $((before - after)) -ge $((12 * 2048))
check "the disk is detached" xl block-detach one xvda
check "its image is free at once" sh -c "! ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q /dev/loop0"
check "its in-flight log is removed" test "$(ls /run/xpv/inflight | wc -l)" = 0
