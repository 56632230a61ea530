# Pages that a guest granted: mapped, copied to and from, while the guest lives.
# needs: on-xen
create_guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=anything"]' &
front=/local/domain/1/device/vbd/51712
back=/local/domain/0/backend/vbd/1/51712

# We play the back end's first step; the guest's blkfront answers with its ring.
wait_for 60 "the back end's nodes" xenstore-exists "$back/state"
xenstore-write "$back/state" 2
wait_for 60 "the guest's ring" in_state "$front" 3
gref=$(xenstore-read "$front/ring-ref")

XPV_GUEST_GRANT="1/$gref" on-xen --nocapture --exact a_page_of_another_domain_is_copied_through_its_mapping \
    >/out/on-xen.log 2>&1 || fail "$(grep -m 1 panicked -A 3 /out/on-xen.log | tr '\n' ' ')"
check "it was the guest's page" grep -q 'copied through a mapping of domain 1' /out/on-xen.log
