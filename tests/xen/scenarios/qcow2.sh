# A stock guest's disk is a qcow2 image over a raw base, by a line that xl takes; dom0 is killed on the way, a snapshot is taken, the disk grows, is committed and streamed under writes, and the base stays as it is. xpv reads lines as xl does.
# needs: xpv
# timeout: 180
for line in format=raw,vdev=xvda,access=rw,script=/bin/true,target=qcow2:/srv/a.qcow2 tap2:qcow2:/srv/a.qcow2,xvda,w \
    tap:aio:/srv/a.img,xvda,w vdev=xvda,target=tap:qcow2:/srv/a.qcow2 vhd:/srv/a.vhd,xvda,w; do
    xl -N block-attach 0 "$line" 2>/dev/null >/tmp/of-xl || fail "xl takes no $line"
    xpv -N block-attach 0 "$line" >/tmp/of-xpv || fail "xpv takes no $line"
    check "read as by xl: $line" cmp /tmp/of-xl /tmp/of-xpv
done
check "a prefix that xl does not know is refused by both" sh -c '! xl -N block-attach 0 vdi:/a,xvda,w 2>/dev/null && ! xpv -N block-attach 0 vdi:/a,xvda,w 2>/dev/null'

cp /in/disk.img /tmp/base.img
base=$(md5sum </tmp/base.img)
check "an image is made over the base" xpv disk create /tmp/middle.qcow2 --backing base.img
check "and one over that" xpv disk create /tmp/a.qcow2 --backing middle.qcow2
start dom0 xpv dom0 --xen
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=qcow2:/tmp/a.qcow2"]'
check_in_guest one "the base's file system is there" 'mount -t ext4 /dev/xvda1 /mnt && grep hello /mnt/hello'
check_in_guest one "files are written" \
    'dd if=/dev/urandom of=/mnt/new bs=64k count=32 2>/dev/null && sync && md5sum /mnt/new >/tmp/sum'
send_to_guest one 'dd if=/dev/urandom of=/mnt/more bs=4k count=512 conv=fsync 2>/dev/null && md5sum /mnt/more >>/tmp/sum'
stop dom0 KILL
start dom0 xpv dom0 --xen
wait_for 60 "the guest to go on" guest_finished one
check "it wrote while dom0 was killed" guest_output one
check_in_guest one "what was written is there" 'umount /mnt && mount -t ext4 /dev/xvda1 /mnt && md5sum -c /tmp/sum && umount /mnt'
check "the image is kept as it is" xpv disk snapshot --xen one xvda kept.qcow2
check_in_guest one "the guest goes on" 'mount -t ext4 /dev/xvda1 /mnt && rm /mnt/more && sync && umount /mnt'
check "the disk grows" xpv disk resize --xen one xvda 64M
check_in_guest one "the guest sees it" 'test "$(blockdev --getsize64 /dev/xvda)" = 67108864'
check "what was kept is saved, and may be read meanwhile" sh -c 'xpv disk check /tmp/kept.qcow2; case $? in 0 | 3) cp /tmp/kept.qcow2 /tmp/saved.qcow2 ;; *) false ;; esac'
send_to_guest one 'mount -t ext4 /dev/xvda1 /mnt && dd if=/dev/urandom of=/mnt/late bs=4k count=256 conv=fsync 2>/dev/null && md5sum /mnt/late >>/tmp/sum'
check "the image is committed meanwhile" xpv disk commit --xen one xvda
check "it is streamed" xpv disk stream --xen one xvda
wait_for 60 "the guest to go on" guest_finished one
check "it wrote meanwhile" guest_output one
check "the image has nothing below" sh -c '! xpv disk info /tmp/a.qcow2 | grep -q backing'
check_in_guest one "what was written is there" 'umount /mnt && mount -t ext4 /dev/xvda1 /mnt && md5sum /mnt/new /mnt/late >/tmp/now && grep -v more /tmp/sum | cmp - /tmp/now && umount /mnt'
xl destroy one
check "the base is as it was" test "$(md5sum </tmp/base.img)" = "$base"

modprobe xen-blkfront; modprobe crc32c_generic; modprobe ext4
check "dom0 attaches the image" xl block-attach 0 format=raw,vdev=xvdj,access=rw,script=nop,target=qcow2:/tmp/a.qcow2
wait_for 20 "dom0 to see it" test -b /dev/xvdj1
check "e2fsck finds it clean" /usr/sbin/e2fsck -f -n /dev/xvdj1
check "it is detached" xl block-detach 0 xvdj
check "the tables are clean, with leaks at most" sh -c 'xpv disk check /tmp/a.qcow2; case $? in 0 | 3) ;; *) false ;; esac'
check "so are those of what was kept" sh -c 'xpv disk check /tmp/kept.qcow2; case $? in 0 | 3) ;; *) false ;; esac'
check "those that nobody wrote are clean" xpv disk check /tmp/middle.qcow2
check "what was kept has the file that is gone" xl block-attach 0 format=raw,vdev=xvdj,access=ro,script=nop,target=qcow2:/tmp/saved.qcow2
wait_for 20 "dom0 to see it" test -b /dev/xvdj1
check "it is mounted" mount -t ext4 -o ro,noload /dev/xvdj1 /mnt
check "it is there" test -s /mnt/more
