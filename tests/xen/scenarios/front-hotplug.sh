# xpv takes over devices from the kernel's frontends once these are unbound; devices are attached and detached while it runs.
# timeout: 240
# guest-programs: xpv nbd-attach
modprobe xen-blkback
modprobe xen-netback max_queues=2
bridge_up br0 10.0.0.1/24
disk=$(loop_disk)
GUEST_EXTRA=xen_netfront.max_queues=2 guest one "disk=[\"format=raw,vdev=xvda,access=rw,script=plain-block,target=$disk\"]" \
    'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=plain-vif"]'
front=/local/domain/1/device
check_in_guest one "the kernel's driver mounts the disk" 'mount -t ext4 /dev/xvda1 /mnt && grep hello /mnt/hello && umount /mnt'
check "its interface has two queues" xenstore-exists $front/vif/0/queue-1/tx-ring-ref

# xpv leaves devices to the kernel's drivers and logs that.
# An interface takes 522 pages, and 1024 are allowed at first.
check_in_guest one "modules are loaded" 'modprobe xen-gntalloc limit=8192 && for each in xen-evtchn xen-gntdev tun nbd; do modprobe $each || exit; done'
in_guest one '{ xpv guest --xen 2>&1 | tee /tmp/xpv.log; } &'
wait_in_guest one "the disk is left to the kernel" 'grep -q "left to the kernel.*vbd-51712" /tmp/xpv.log'
wait_in_guest one "the interface too" 'grep -q "left to the kernel.*vif-0" /tmp/xpv.log'
check_in_guest one "a second program is refused" '! xpv guest --xen 2>/tmp/second && grep another /tmp/second'
in_guest one 'kill $(pidof xpv)'

drivers=/sys/bus/xen/drivers
check_in_guest one "the kernel's drivers are unbound" "echo vbd-51712 >$drivers/vbd/unbind && echo vif-0 >$drivers/vif/unbind"
# The key that blkfront leaves on two processors.
xenstore-write $front/vbd/51712/multi-queue-num-queues 2
check_in_guest one "and its frontends are unloaded" 'rmmod xen-blkfront && rmmod xen-netfront'
in_guest one 'xpv guest --xen &'
wait_for 20 "both ends to be connected" sh -c "[ \$(xenstore-read $front/vif/0/state) = 4 ]"
check_in_guest one "dom0 answers pings" 'ip address add 10.0.0.2/24 dev xpv0 && ping -c 3 -i 0.1 -W 5 10.0.0.1'
in_guest one 'nbd-attach /run/xpv/xvda.nbd /dev/nbd0 &'
wait_in_guest one "the partition is seen" 'head -c 512 /dev/nbd0 >/dev/null && test -b /dev/nbd0p1'
check_in_guest one "ext4 mounts" 'mount -t ext4 /dev/nbd0p1 /mnt && grep hello /mnt/hello && umount /mnt'

# A disk and an interface are attached and detached.
second=$(loop_disk)
check "xl attaches a disk" xl block-attach one "format=raw,vdev=xvdb,access=rw,script=plain-block,target=$second"
wait_in_guest one "it is exported" 'test -S /run/xpv/xvdb.nbd'
wait_for 20 "it to be connected" in_state $front/vbd/51728 4
check "xl detaches it" xl block-detach one xvdb
wait_in_guest one "its socket is removed" '! test -e /run/xpv/xvdb.nbd'
check "xl attaches an interface" xl network-attach one mac=00:16:3e:00:00:08 bridge=br0 script=plain-vif
wait_in_guest one "it has a tap" 'test -e /sys/class/net/xpv1'
wait_for 20 "it to be connected" in_state $front/vif/1 4
check "xl detaches it" xl network-detach one 1
wait_in_guest one "its tap is removed" '! test -e /sys/class/net/xpv1'
check_in_guest one "the first interface works" 'ping -c 1 -W 5 10.0.0.1'
