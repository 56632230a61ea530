# Pages that a guest granted are mapped, copied to and from, and read into from a disk.
# needs: on-xen
guest_ring
export XPV_GUEST_GRANT=$ring XPV_BLOCK_DEVICE=$(loop_disk)
on-xen --nocapture --test-threads=1 of_another_domain >/out/on-xen.log 2>&1 ||
    fail "$(grep -m 1 panicked -A 3 /out/on-xen.log | tr '\n' ' ')"
check "the guest's page was copied" grep -q 'copied through a mapping of domain 1' /out/on-xen.log
check "a disk was read into it" grep -q 'read into a page of domain 1' /out/on-xen.log
