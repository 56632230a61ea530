# A stock guest on xpv's block backend, by two queues and large requests: partition, ext4, 200 MB written, flushed, read back; dom0 finds the files in the image, and what is trimmed leaves it.
# needs: xpv
# timeout: 240
truncate -s 320M /tmp/disk
printf '\0\376\377\377\203\376\377\377\0\010\0\0\0\370\011\0' >/tmp/partition # from 1 MiB on, 319 MiB
dd if=/tmp/partition of=/tmp/disk bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of=/tmp/disk bs=1 seek=510 conv=notrunc 2>/dev/null
modprobe loop
losetup -o 1048576 /dev/loop0 /tmp/disk
/usr/sbin/mke2fs -q -t ext4 /dev/loop0 && losetup -d /dev/loop0 || fail "mke2fs"

start dom0 xpv dom0 --xen --queues 2
GUEST_BOUND=150
GUEST_EXTRA=xen_blkfront.max_indirect_segments=256 guest one vcpus=2 memory=320 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/tmp/disk"]'
check "the guest uses the 64-bit layout" test "$(xenstore-read /local/domain/1/device/vbd/51712/protocol)" = x86_64-abi
xenstore-ls /local/domain/0/backend/vbd/1/51712 | sed 's/^/features: /'
xenstore-ls /local/domain/1/device/vbd/51712 | sed 's/^/features: front: /'

check_in_guest one "two processors" 'test "$(nproc)" = 2'
in_guest one 'ls /sys/block/xvda/mq; grep . /sys/block/xvda/queue/max_*'
check_in_guest one "two queues" 'test "$(ls /sys/block/xvda/mq | wc -l)" = 2'
check "one for each processor" test "$(xenstore-read /local/domain/1/device/vbd/51712/multi-queue-num-queues)" = 2
check_in_guest one "requests of up to 1 MiB" 'test "$(cat /sys/block/xvda/queue/max_sectors_kb)" = 1024'
check_in_guest one "the partition is seen" 'grep -q xvda1 /proc/partitions'
check_in_guest one "ext4 mounts" 'mount -t ext4 /dev/xvda1 /mnt'
# Four different files of 50 MB, two of them written at a time.
check_in_guest one "random bytes" 'dd if=/dev/urandom of=/tmp/seed bs=1M count=10 2>/dev/null'
file='for n in 1 2 3 4 5; do cat /tmp/seed; echo $f $n; done'
check_in_guest one "200 MB are written and flushed" \
    "(for f in a b; do ($file) >/mnt/\$f; done) & for f in c d; do ($file) >/mnt/\$f; done; wait; sync"
check_in_guest one "and read back from the disk" \
    "umount /mnt && mount -t ext4 /dev/xvda1 /mnt && md5sum /mnt/[a-d] >/tmp/sums && cat /tmp/sums"
sum() { echo "$sums" | grep "/mnt/$1" | cut -c 1-32; }
sums=$(in_guest one "cat /tmp/sums; umount /mnt; f=a; ($file) | md5sum | sed s,-,/mnt/written,")
check "what was read is what was written" test "$(sum a)" = "$(sum written)"
xpv block-list --xen --json one >/tmp/list
# 200 MB in requests of at most 44 KiB would be 4,655.
writes=$(sed -n '/"write": {/,/"requests"/s/.*"requests": \([0-9]*\).*/\1/p' /tmp/list | head -n 1)
check "most writes are large: $writes requests" test "$writes" -lt 2000
for negotiated in '"queues": 2' '"indirect_segments": 256' '"persistent": 1' '"discard": 1'; do
    check "the list says what was negotiated: $negotiated" grep -q "$negotiated" /tmp/list
done
check "both queues have served requests" test "$(sed -n '/"queues": \[/,$p' /tmp/list | grep -c '"received": [1-9]')" = 2
# 40 MB more, which are removed: their blocks leave the image, 512 bytes each.
check "discard is offered" test "$(xenstore-read /local/domain/0/backend/vbd/1/51712/feature-discard)" = 1
check_in_guest one "40 MB are written" 'mount -t ext4 /dev/xvda1 /mnt && (for n in 1 2 3 4; do cat /tmp/seed; done) >/mnt/e && sync'
before=$(stat -c %b /tmp/disk)
check_in_guest one "removed, and trimmed" 'rm /mnt/e && sync && fstrim /mnt && umount /mnt'
after=$(stat -c %b /tmp/disk)
echo "blocks: $before before, $after after"
check "the image has most of them less" test $((before - after)) -ge $((36 * 2048))
check_in_guest one "no error was seen" '! dmesg | grep -iE "I/O error|xvda.*error"'

# The same file system with dom0's tools.
losetup -o 1048576 /dev/loop0 /tmp/disk
check "e2fsck finds it clean" e2fsck -f -n /dev/loop0
modprobe crc32c_generic; modprobe ext4
check "the image holds a file system" mount -t ext4 -o ro /dev/loop0 /mnt
check "the files are in the image" test "$(md5sum /mnt/[a-d] | cut -c 1-32)" = "$(sum '[a-d]')"
xl destroy one
wait_for 10 "the backend to close" sh -c '! xenstore-exists /local/domain/0/backend/vbd/1'
check "the backend runs" running dom0
