# A hostile block frontend: only its disk is closed, with an error in the log, and a stock guest's disk is served.
# needs: xpv
# guest-programs: hostile-vbd
# timeout: 900
. /lib/hostile.sh
cp /in/disk.img /tmp/disk
# With a level of its own the log is not limited to what one guest may cause.
start dom0 env RUST_LOG=info xpv dom0 --xen --queues 3
guest good 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/tmp/disk"]'
ram=format=raw,access=rw,script=nop,target=ram:1048576
GUEST_EXTRA=xpv.fronts=no guest bad "disk=[\"vdev=xvda,$ram\",\"vdev=xvdb,$ram\"]"

at=16
check_others_served() {
    at=$((at + 8))
    check_in_guest good "the other guest writes" \
        "dd if=/dev/urandom of=/tmp/a bs=64k count=8 && dd if=/tmp/a of=/dev/xvda bs=64k seek=$at oflag=direct"
    check_in_guest good "and reads it back" "dd if=/dev/xvda bs=64k skip=$at count=8 iflag=direct | cmp - /tmp/a"
}

attack bad 'XPV_VBDS=51712/51728 hostile-vbd' xen::
# Again with persistent grants, for the attacks that use mapped pages.
attack bad 'XPV_PERSISTENT=1 XPV_VBDS=51712/51728 hostile-vbd' 'xen::.*\(cannot_be_mapped\|revoked\|slots_overwritten\|vanishes\)'
check "persistent grants were used" grep -q 'vbd{domid=2 .*data path persistent=true' /out/dom0.log
destroy_attacker bad
sum=$(in_guest good 'md5sum </tmp/a' | grep -oE '[0-9a-f]{32}')
check "the last write is in the image" test "$(dd if=/tmp/disk bs=64k skip=$at count=8 | md5sum | cut -d' ' -f1)" = "$sum"
xl destroy good
check "the backend exits with success" stop dom0
