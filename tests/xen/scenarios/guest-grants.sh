# Pages that a guest granted: mapped, copied to and from, and read into from a disk.
# needs: on-xen
create_guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=anything"]' &
front=/local/domain/1/device/vbd/51712
back=/local/domain/0/backend/vbd/1/51712

# We play the back end's first step; the guest's blkfront answers with its ring.
wait_for 60 "the back end's nodes" xenstore-exists "$back/state"
xenstore-write "$back/state" 2
wait_for 60 "the guest's ring" in_state "$front" 3
gref=$(xenstore-read "$front/ring-ref")

export XPV_GUEST_GRANT="1/$gref" XPV_BLOCK_DEVICE=$(loop_disk)
on-xen --nocapture --test-threads=1 of_another_domain >/out/on-xen.log 2>&1 ||
    fail "$(grep -m 1 panicked -A 3 /out/on-xen.log | tr '\n' ' ')"
check "the guest's page was copied" grep -q 'copied through a mapping of domain 1' /out/on-xen.log
check "a disk was read into it" grep -q 'read into a page of domain 1' /out/on-xen.log
