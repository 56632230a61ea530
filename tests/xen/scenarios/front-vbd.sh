# xpv's blkfront with Linux's block backend: a pattern in large requests over two queues, then a file system over NBD; closed, killed, and opened again.
# timeout: 240
# guest-programs: xpv xen-front nbd-attach
modprobe xen-blkback max_queues=2
disk=$(loop_disk)
truncate -s 4M /tmp/pattern
losetup /dev/loop7 /tmp/pattern
GUEST_EXTRA=xpv.fronts=no guest one "disk=[\"format=raw,vdev=xvda,access=rw,script=plain-block,target=$disk\",
    \"format=raw,vdev=xvdb,access=rw,script=plain-block,target=/dev/loop7\"]"
front=/local/domain/1/device/vbd/51712
back=/local/domain/0/backend/vbd/1/51712

# Several connections in the same process; dom0 reads the written data.
output=$(in_guest one 'xen-front xvdb 2>/dev/null') || fail "xen-front: $(echo "$output" | tail -n 1)"
echo "$output"
sum=$(echo "$output" | sed -n 's/^sha256 //p')
check "the image holds the pattern" test "$(sha256sum </tmp/pattern | cut -d' ' -f1)" = "$sum"
check "Linux uses two queues, the x86_64 ABI and persistent grants" \
    sh -c 'dmesg | grep "vbd/1/51728: using 2 queues, protocol 1 (x86_64-abi) persistent grants"'
# Linux's backend takes requests of 1 MiB (256 indirect segments): one for each.
check "requests are large" sh -c 'echo "$0" | grep "^4 write requests$"' "$output"

# serve: starts xpv in the guest, which exports the disk, and mounts the export.
serve() {
    in_guest one '{ xpv guest --xen --queues 2 >>/tmp/xpv.log 2>&1; cat /tmp/xpv.log; } &'
    wait_in_guest one "the disk is exported" 'test -S /run/xpv/xvda.nbd'
    in_guest one 'nbd-attach /run/xpv/xvda.nbd /dev/nbd0 &'
    wait_in_guest one "its partition is seen" 'head -c 512 /dev/nbd0 >/dev/null && test -b /dev/nbd0p1'
    check_in_guest one "ext4 mounts" 'mount -t ext4 /dev/nbd0p1 /mnt'
}

# check_file: the file is as it was written.
check_file() {
    check_in_guest one "the file is unchanged" "md5sum -c /tmp/sum && umount /mnt"
}

# Fewer pages than a full ring of requests needs: some requests must wait.
check_in_guest one "the guest has few pages to grant" 'echo 64 >/sys/module/xen_gntalloc/parameters/limit'
serve
xenstore-ls "$front"
check "the disk has two queues" test "$(xenstore-read $front/multi-queue-num-queues)" = 2
check_in_guest one "the file of the image is there" 'grep hello /mnt/hello'
check_in_guest one "a file is written" 'dd if=/dev/urandom of=/mnt/new bs=64k count=64 && md5sum /mnt/new >/tmp/sum && sync'
check_in_guest one "and read past the cache" 'echo 3 >/proc/sys/vm/drop_caches'
# The busy disk has left pages to the other one.
in_guest one 'nbd-attach /run/xpv/xvdb.nbd /dev/nbd1 &'
wait_in_guest one "the other disk is exported" 'test "$(cat /sys/block/nbd1/size)" = 8192'
check_in_guest one "the busy disk is written meanwhile" '(dd if=/dev/zero of=/mnt/zeros bs=64k count=128; touch /tmp/zeroed) >/dev/null 2>&1 &'
check_in_guest one "the other disk is read" 'test "$(dd if=/dev/nbd1 bs=64k count=64 | sha256sum | cut -d" " -f1)" = '"$sum"
wait_in_guest one "the busy disk is written" 'test -e /tmp/zeroed'
check_file

in_guest one 'kill $(pidof xpv)'
wait_for 10 "both ends to be closed" sh -c "[ \$(xenstore-read $front/state)\$(xenstore-read $back/state) = 66 ]"
serve
check_file

in_guest one 'kill -9 $(pidof xpv); rm /run/xpv/xvda.nbd'
serve
check_file
in_guest one 'kill $(pidof xpv)'
wait_for 10 "both ends to be closed" sh -c "[ \$(xenstore-read $front/state)\$(xenstore-read $back/state) = 66 ]"

# Dom0's kernel reads the same file system.
modprobe crc32c_generic
modprobe ext4
part=$(losetup -f)
losetup -o 1048576 "$part" "$disk"
check "the image holds a file system" mount -t ext4 -o ro "$part" /mnt
check "the file is in the image" test "$(md5sum </mnt/new | cut -d' ' -f1)" = "$(in_guest one 'cat /tmp/sum' | cut -d' ' -f1)"
