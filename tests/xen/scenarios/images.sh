# What dom0 itself uses is not attached for writing, also with a script= in place of Xen's own check: mounts, the device mapper, files.
# needs: xpv
# timeout: 240
disk_file 32M
start dom0 xpv dom0 --xen
modprobe xen-blkfront
modprobe crc32c_generic; modprobe ext4; modprobe dm-mod

# attach TARGET [ACCESS]: attaches a disk to dom0 itself.
attach() {
    xl block-attach 0 "format=raw,vdev=xvdj,access=${2:-rw},script=nop,target=$1"
}

# check_refused WHAT TARGET WORDS [ACCESS]: it is not attached, and the log says why.
check_refused() {
    : >/out/before; cat /out/dom0.log >/out/before
    check "$1 is refused" sh -c '! "$@" >/dev/null 2>&1' - xl block-attach 0 "format=raw,vdev=xvdj,access=${4:-rw},script=nop,target=$2"
    tail -c "+$(($(wc -c </out/before) + 1))" /out/dom0.log >/out/since
    grep -q "$3" /out/since || { cat /out/since; fail "the log does not say: $3"; }
    # libxl leaves the nodes of an attach that failed.
    xl block-detach 0 xvdj >/dev/null 2>&1
    wait_for 30 "xl to have removed it" sh -c '! xenstore-exists /local/domain/0/backend/vbd/0/51856'
}

# check_attached WHAT TARGET [ACCESS]: it is attached, and then detached.
check_attached() {
    check "$1 is attached" attach "$2" "$3"
    wait_for 20 "dom0 to see it" test -b /dev/xvdj
    check "it is detached" xl block-detach 0 xvdj
    wait_for 20 "dom0 to have lost it" sh -c '! test -b /dev/xvdj'
}

check "a file system is made" /usr/sbin/mke2fs -q -t ext4 /dev/loop0
check "dom0 mounts it" mount -t ext4 /dev/loop0 /mnt
check_refused "a mounted device" /dev/loop0 "mounted on /mnt"
check_refused "a mounted device, for reading," /dev/loop0 "mounted on /mnt" ro
check_refused "the file of a mounted loop device" /tmp/disk "loop device /dev/loop0, mounted on /mnt"
ln -s /tmp/disk /tmp/link; ln /tmp/disk /tmp/hard
check_refused "a symbolic link to it" /tmp/link "mounted on /mnt"
check_refused "a hard link of it" /tmp/hard "mounted on /mnt"
umount /mnt
check_attached "the device, once it is free," /dev/loop0

echo "0 65536 linear /dev/loop0 0" >/tmp/table
check "the device mapper takes it" dmsetup create --noudevsync images /tmp/table
dmsetup mknodes >/dev/null 2>&1
check_refused "a device of the device mapper's" /dev/loop0 "held by dm-0"
check_attached "the device mapper's device" /dev/mapper/images
check "dom0 mounts that" mount -t ext4 /dev/mapper/images /mnt
check_refused "a device that is mounted by the device mapper" /dev/mapper/images "mounted on /mnt"
check_refused "what it is made of" /dev/loop0 "held by dm-0"
umount /mnt
check "the device mapper lets go" dmsetup remove --noudevsync images
check_attached "the device again" /dev/loop0

truncate -s 16M /tmp/other
sleep 1000 3>>/tmp/other & writer=$!
check_refused "a file that a process writes to" /tmp/other "has it open for writing"
kill "$writer"; wait "$writer" 2>/dev/null
check_attached "the file, once nobody writes to it," /tmp/other
