# A stock guest with the kernel's own backends: the baseline of comparisons.
modprobe xen-blkback
modprobe xen-netback
bridge_up br0 10.0.0.1/24
disk=$(loop_disk)

guest stock \
    "disk=[\"format=raw,vdev=xvda,access=rw,script=plain-block,target=$disk\"]" \
    'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=plain-vif"]'

check_in_guest stock "the partition is seen" 'grep -q xvda1 /proc/partitions'
check_in_guest stock "ext4 mounts" 'mount -t ext4 /dev/xvda1 /mnt && grep hello /mnt/hello'
check_in_guest stock "a file is written" 'dd if=/dev/urandom of=/mnt/new bs=64k count=32 && sync && umount /mnt'
check_in_guest stock "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
check_in_guest stock "dom0 answers pings" 'ping -c 3 -W 5 10.0.0.1'
