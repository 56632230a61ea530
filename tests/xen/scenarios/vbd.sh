# A stock guest on our block back end: partition, ext4, a file that is found in the image afterwards.
# needs: xpv
cp /in/disk.img /tmp/disk
start dom0 xpv dom0 --xen
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/tmp/disk"]'

check_in_guest one "the partition is seen" 'grep -q xvda1 /proc/partitions'
check_in_guest one "ext4 mounts" 'mount -t ext4 /dev/xvda1 /mnt && grep hello /mnt/hello'
check_in_guest one "a file is written" 'dd if=/dev/urandom of=/mnt/new bs=64k count=32 && sync'
sum=$(in_guest one 'md5sum </mnt/new && umount /mnt' | grep -oE '[0-9a-f]{32}')
check "the guest has read it" test -n "$sum"

# The same file system, by dom0's own kernel.
modprobe loop; modprobe crc32c_generic; modprobe ext4
losetup -o 1048576 /dev/loop0 /tmp/disk
check "the image holds a file system" mount -t ext4 -o ro /dev/loop0 /mnt
check "the file is in the image" test "$(md5sum </mnt/new | cut -d' ' -f1)" = "$sum"
xl destroy one
wait_for 10 "the back end lets go" sh -c '! xenstore-exists /local/domain/0/backend/vbd/1'
check "the back end lives" running dom0
