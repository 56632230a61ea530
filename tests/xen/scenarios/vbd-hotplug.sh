# While a stock guest writes to one disk, another is attached, grows under I/O, and is detached; also with dom0's frontend.
# needs: xpv
# timeout: 180
disk_file 64M
start dom0 xpv dom0 --xen
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]'
start_writer one

truncate -s 16M /tmp/more
check "a disk is attached" xl block-attach one format=raw,vdev=xvdb,access=rw,script=nop,target=/tmp/more
check_in_guest one "it is there" 'until grep -q xvdb /proc/partitions; do usleep 100000; done'
check_in_guest one "it is written and read" \
    'dd if=/dev/urandom of=/tmp/x bs=1M count=16 2>/dev/null && cp /tmp/x /dev/xvdb && sync && cmp /tmp/x /dev/xvdb'
check_in_guest one "it is 16 MiB" 'test "$(blockdev --getsize64 /dev/xvdb)" = 16777216'
truncate -s 24M /tmp/more
check_in_guest one "it grows while it is read" \
    'until [ "$(blockdev --getsize64 /dev/xvdb)" = 25165824 ]; do dd if=/dev/xvdb of=/dev/null bs=4k count=8 iflag=direct 2>/dev/null; done'
check_in_guest one "its new end is written and read" \
    'dd if=/tmp/x of=/dev/xvdb bs=1M seek=16 count=8 2>/dev/null && sync && dd if=/dev/xvdb bs=1M skip=16 2>/dev/null | cmp -n 8388608 - /tmp/x'
check "it is detached" xl block-detach one xvdb
check_in_guest one "it is gone" 'until ! grep -q xvdb /proc/partitions; do usleep 100000; done'
check_writer_continues one "during hotplug"
check_written one

# Dom0's own blkfront, in the same kernel.
modprobe xen-blkfront
truncate -s 16M /tmp/own
check "a disk is attached to dom0" xl block-attach 0 format=raw,vdev=xvdj,access=rw,script=nop,target=/tmp/own
wait_for 20 "dom0 to see it" test -b /dev/xvdj
check "dom0 makes a file system on it" /usr/sbin/mke2fs -q -t ext4 /dev/xvdj
modprobe crc32c_generic; modprobe ext4
check "dom0 mounts it" mount -t ext4 /dev/xvdj /mnt
dd if=/dev/urandom of=/mnt/x bs=1M count=8 2>/dev/null && md5sum /mnt/x >/tmp/sum && umount /mnt
mount -t ext4 /dev/xvdj /mnt
check "dom0 reads what it wrote" md5sum -c /tmp/sum
umount /mnt
check "it is detached from dom0" xl block-detach 0 xvdj
check "e2fsck finds its image clean" /usr/sbin/e2fsck -f -n /tmp/own
