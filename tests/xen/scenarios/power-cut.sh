# The power of a guest's disk is cut at flushes and between them: its ext4 recovers, e2fsck finds it clean, and every file that the guest has synced is there.
# needs: xpv log-writes
# guest-programs: log-writes
# timeout: 400
SECTORS=65536 FILES=60 CUTS=40
disk_file $((SECTORS * 512))
truncate -s 128M /tmp/log && losetup /dev/loop1 /tmp/log || fail "no loop device for the log"
modprobe dm-mod && modprobe dm-log-writes || fail "no module dm-log-writes"
modprobe crc32c_generic; modprobe ext4
echo "0 $SECTORS log-writes /dev/loop0 /dev/loop1" >/tmp/table
check "writes are logged" dmsetup create --noudevsync log /tmp/table
dmsetup mknodes >/dev/null 2>&1
check "a file system is made" /usr/sbin/mke2fs -q -t ext4 /dev/mapper/log
mark() { dmsetup message log 0 mark "$1" || fail "dmsetup message"; }
mark none

start dom0 xpv dom0 --xen --queues 2
guest one vcpus=2 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/mapper/log"]'
check "the guest uses two queues" test "$(xenstore-read /local/domain/1/device/vbd/51712/multi-queue-num-queues)" = 2
check_in_guest one "ext4 mounts" 'mount -t ext4 /dev/xvda /mnt'
file='log-writes file $f $i | dd of=/mnt/$f$i bs=16k conv=fsync 2>/dev/null || break; echo synced $f $i'
write="i=1; while [ \$i -le $FILES ]; do $file; i=\$((i + 1)); done; echo ended \$f"
check_in_guest one "two writers run" "(f=a; $write) & (f=b; $write) &"

# What the guest has said until now is marked in the log: it was done before.
synced() {
    for writer in a b; do
        last=$(grep -ao "synced $writer [0-9]*" "$CONSOLES/guest-one.log" | tail -n 1 | cut -d ' ' -f 3)
        echo "$writer${last:-0}"
    done | paste -s -d - -
}
ended() { [ "$(grep -ac '^ended [ab]' "$CONSOLES/guest-one.log")" = 2 ]; }
deadline=$(($(uptime_s) + 120)) marked=none
until ended; do
    [ "$(uptime_s)" -lt "$deadline" ] || fail "the writers do not end: $(synced)"
    now=$(synced)
    [ "$now" = "$marked" ] || mark "$now"
    marked=$now
    sleep 0.1
done
all=$(synced)
mark "$all"
check "every file is synced" test "$all" = "a$FILES-b$FILES"
check "the guest is destroyed" xl destroy one
wait_for 20 "the backend to close" sh -c '! xenstore-exists /local/domain/0/backend/vbd/1'
wait_for 20 "the device mapper to let go" dmsetup remove --noudevsync log
losetup -d /dev/loop1

flushes=$(log-writes count /tmp/log "$SECTORS")
echo "flushes: $flushes, $(ls -s /tmp/log)"
# A sync of a file is a flush at least, unless another one's covers it.
check "the guest's flushes reach the disk" test "$flushes" -gt "$FILES"
seed=$RANDOM
echo "seed: $seed"
cut=0 lacking=0 deadline=$(($(uptime_s) + 90))
while [ "$cut" -lt "$CUTS" ] && [ "$(uptime_s)" -lt "$deadline" ]; do
    what="cut $cut of seed $seed"
    marked=$(log-writes cut /tmp/log "$SECTORS" /tmp/cut "$seed" "$cut") || fail "$what: no image"
    losetup /dev/loop2 /tmp/cut && mount -t ext4 /dev/loop2 /mnt || fail "$what: it does not mount"
    log-writes check /mnt "$marked" 2>/out/lost || fail "$what: $(cat /out/lost)"
    # A check that could not fail would find them all in every image.
    [ "$marked" = "$all" ] || log-writes check /mnt "$all" 2>/dev/null || lacking=$((lacking + 1))
    umount /mnt
    /usr/sbin/e2fsck -f -n /dev/loop2 >/out/e2fsck 2>&1 || fail "$what: $(cat /out/e2fsck)"
    losetup -d /dev/loop2
    cut=$((cut + 1))
done
check "$cut cuts lost nothing that was synced" test "$cut" -ge 10
check "some are before the last file" test "$lacking" -gt 0
