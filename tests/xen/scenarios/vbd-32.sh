# A frontend with the 32-bit ring layout on the example backend xen-vbd: the data that it writes is in the image.
# needs: xen-vbd
# guest-programs: layouts
cp /in/disk.img /tmp/disk
start dom0 xen-vbd
GUEST_EXTRA=xpv.fronts=no guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/tmp/disk"]'
# Three times around the ring, with a partial request at the end.
bytes=$(((100 * 11 + 3) * 4096))
check_in_guest one "the content is made" "head -c $bytes /dev/urandom >/tmp/content"
output=$(in_guest one 'XPV_VBD=51712 XPV_CONTENT=/tmp/content layouts --exact xen::layout_of_32_bit_guests_keeps_data --nocapture 2>&1') ||
    fail "$(echo "$output" | grep -m 1 -A 1 panicked | tr '\n' ' ')"
check "the protocol is in the store" test "$(xenstore-read "/local/domain/$(xl domid one)/device/vbd/51712/protocol")" = x86_32-abi
sum=$(in_guest one 'md5sum </tmp/content' | grep -oE '[0-9a-f]{32}')
check "the image holds what was written" test "$(head -c $bytes /tmp/disk | md5sum | cut -d' ' -f1)" = "$sum"
check "the rest of the image is unchanged" sh -c "tail -c +$((bytes + 1)) /in/disk.img >/tmp/a; tail -c +$((bytes + 1)) /tmp/disk | cmp - /tmp/a"
check "no error or warning is logged" sh -c '! grep -E "ERROR|WARN" /out/dom0.log'
check "the backend runs" running dom0
