# xpv's frontends with xpv's backends, each killed while the disk is in use: no data is lost.
# timeout: 240
# needs: xpv
# guest-programs: xpv nbd-attach
modprobe tun
bridge_up br0 10.0.0.1/24
# A fixed address, as the bridge's would change with its ports.
ip link set br0 address 00:16:3e:ff:ff:01
cp /in/disk.img /tmp/disk
mkdir /tmp/www
httpd -p 10.0.0.1:80 -h /tmp/www
start dom0 xpv dom0 --xen
GUEST_EXTRA=xpv.fronts=no guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/tmp/disk"]' \
    'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=nop"]'
front=/local/domain/1/device

# serve: starts xpv in the guest, mounts its disk and brings its interface up.
serve() {
    in_guest one 'xpv guest --xen >>/tmp/xpv.log 2>&1 &'
    wait_in_guest one "the disk is exported" 'test -S /run/xpv/xvda.nbd'
    in_guest one 'nbd-attach /run/xpv/xvda.nbd /dev/nbd0 &'
    wait_in_guest one "the partition is seen" 'head -c 512 /dev/nbd0 >/dev/null && test -b /dev/nbd0p1'
    check_in_guest one "ext4 mounts" 'mount -t ext4 /dev/nbd0p1 /mnt'
    wait_in_guest one "the interface has its address" 'ip address add 10.0.0.2/24 dev xpv0'
}

serve
dd if=/dev/urandom of=/tmp/www/file bs=64k count=64 2>/dev/null
sum=$(md5sum </tmp/www/file | cut -d' ' -f1)
check_in_guest one "a file is received over the interface and written to the disk" 'wget -q -O /mnt/file http://10.0.0.1/file && sync'

# The backend is killed while the guest writes.
in_guest one '{ cp /mnt/file /mnt/copy && sync && echo 3 >/proc/sys/vm/drop_caches; echo $? >/tmp/copied; } &'
stop dom0 KILL
start dom0 xpv dom0 --xen
wait_in_guest one "the write is complete" 'test -s /tmp/copied'
check_in_guest one "and the copy is identical" "test \$(cat /tmp/copied) = 0 && md5sum /mnt/copy | grep $sum"
wait_in_guest one "dom0 answers pings again" 'ping -c 3 -i 0.1 -W 5 10.0.0.1'

# The guest's program is killed and started again.
check_in_guest one "the disk is unmounted" 'umount /mnt'
in_guest one 'kill -9 $(pidof xpv); rm /run/xpv/xvda.nbd'
serve
check_in_guest one "the file is unchanged" "md5sum /mnt/copy | grep $sum"
check_in_guest one "dom0 answers pings" 'ping -c 3 -i 0.1 -W 5 10.0.0.1'
check_in_guest one "the program exits" 'umount /mnt && kill $(pidof xpv)'
wait_for 10 "the disk to be closed" in_state $front/vbd/51712 6
wait_for 10 "the interface to be closed" in_state $front/vif/0 6

modprobe loop; modprobe crc32c_generic; modprobe ext4
losetup -o 1048576 /dev/loop0 /tmp/disk
check "the image holds a file system" mount -t ext4 -o ro /dev/loop0 /mnt
check "the file is in it" test "$(md5sum </mnt/copy | cut -d' ' -f1)" = "$sum"
