# xpv in a driver domain serves another guest's disk.
# guest-programs: xpv
GUEST_EXTRA=xpv.fronts=no guest drv driver_domain=1
check_in_guest drv "it has an image" 'truncate -s 16M /tmp/disk'
check_in_guest drv "it serves" 'xpv dom0 --xen >/tmp/log 2>&1 & until grep -q ready /tmp/log; do usleep 100000; done'
guest two 'disk=["format=raw,vdev=xvda,access=rw,backend=drv,script=/bin/true,target=/tmp/disk"]'
check "the backend is the driver domain" test "$(xenstore-read /local/domain/2/device/vbd/51712/backend-id)" = 1
check_in_guest two "a file system is made and written" \
    'mke2fs /dev/xvda >/dev/null && mount -t ext4 /dev/xvda /mnt && dd if=/dev/urandom of=/mnt/x bs=1M count=8 2>/dev/null && sync'
check_in_guest two "and read from the disk" \
    'md5sum /mnt/x >/tmp/sum && umount /mnt && mount -t ext4 /dev/xvda /mnt && md5sum -c /tmp/sum && umount /mnt'
sum=$(in_guest two 'md5sum </dev/xvda' | grep -oE '[0-9a-f]{32}')
check_in_guest drv "the driver domain's image holds the same" "test \$(md5sum </tmp/disk | cut -c 1-32) = $sum"
count=$(in_guest drv "xpv block-list 2 --json | sed -n '/\"write\": {/,/}/s/.*\"bytes\": //p' | tr -d ,")
check "its own xpv counts what was written ($count)" test "$(echo "$count" | grep -oE '^[0-9]+' | tail -n 1)" -ge 8388608
check_in_guest drv "the backend runs" 'kill -0 $(pidof xpv) && cat /tmp/log'
