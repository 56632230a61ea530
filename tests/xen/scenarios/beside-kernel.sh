# With xen-blkback loaded, xpv leaves a disk to the kernel and logs that; without it, xpv serves the next disk.
# needs: xpv
modprobe xen-blkfront
modprobe xen-blkback
disk_file 16M
start dom0 xpv dom0 --xen
check "a disk is attached" xl block-attach 0 format=raw,vdev=xvdj,access=rw,script=plain-block,target=/dev/loop0
wait_for 20 "the kernel to serve it" test -b /dev/xvdj
wait_for 10 "the log line" grep -q 'left to the kernel, whose xen-blkback has it' /out/dom0.log
check "limits of it are refused" sh -c '! xpv block-set 0 xvdj iops-total=5 2>/tmp/error'
check "as xpv does not serve it" grep -q "disk xvdj of Domain-0 is not served by xpv" /tmp/error
check "it is written and read" sh -c 'dd if=/dev/urandom of=/tmp/x bs=1M count=4 2>/dev/null && dd if=/tmp/x of=/dev/xvdj bs=1M conv=fsync 2>/dev/null && cmp -n 4194304 /tmp/x /dev/loop0'
check "it is detached" xl block-detach 0 xvdj
# Without the kernel's driver xpv serves the next device.
rmmod xen-blkback
check "the next is attached" xl block-attach 0 format=raw,vdev=xvdk,access=rw,script=nop,target=/dev/loop0
wait_for 20 "xpv to serve it" test -b /dev/xvdk
check "it is what the kernel wrote" cmp -n 4194304 /tmp/x /dev/xvdk
check "the node has xpv's keys" xenstore-exists /local/domain/0/backend/vbd/0/51872/max-ring-pages
check "it is detached" xl block-detach 0 xvdk
check "the backend runs" running dom0
