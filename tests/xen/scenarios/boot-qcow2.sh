# A stock guest has its root file system on a qcow2 image over a base: it boots from there, is snapshotted and committed under writes, and boots again with what it wrote.
# needs: xpv
# timeout: 240
mkdir /tmp/tree
(cd /tmp/tree && cpio -id </in/guest.cpio 2>/dev/null && touch on-disk && rm -rf tmp/*) || fail "the guest's files are not unpacked"
check "a file system is made of them" /usr/sbin/mke2fs -q -F -t ext4 -d /tmp/tree /tmp/base.img 48m
rm -rf /tmp/tree
base=$(md5sum </tmp/base.img)
check "an image is made over it" xpv disk create /tmp/root.qcow2 --backing base.img
start dom0 xpv dom0 --xen
boot() {
    GUEST_EXTRA=xpv.root=/dev/xvda guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=qcow2:/tmp/root.qcow2"]'
    check_in_guest one "it runs from its disk" 'grep -q "^/dev/[a-z]* / ext4" /proc/mounts && test -e /on-disk'
}
boot
check_in_guest one "it writes" 'dd if=/dev/urandom of=/root/first bs=64k count=16 2>/dev/null && md5sum /root/first >/root/sums && sync'
check "its image is kept" xpv disk snapshot --xen one xvda kept.qcow2
send_to_guest one 'dd if=/dev/urandom of=/root/second bs=4k count=256 conv=fsync 2>/dev/null && md5sum /root/second >>/root/sums && sync'
check "and what it has written since is committed meanwhile" xpv disk commit --xen one xvda
wait_for 60 "the guest to go on" guest_finished one
check "it wrote" guest_output one
check_in_guest one "it unmounts its disk" 'sync && mount -o remount,ro /'
xl destroy one
check "the base is as it was" test "$(md5sum </tmp/base.img)" = "$base"
for image in root kept; do
    check "$image is clean, with leaks at most" sh -c "xpv disk check /tmp/$image.qcow2; case \$? in 0 | 3) ;; *) false ;; esac"
done
boot
check_in_guest one "what it wrote is there" 'md5sum -c /root/sums'
check "the backend runs" running dom0
