# Our xen hypervisor, with dom0 as its own peer: grants, copies, events.
# needs: on-xen
on-xen --nocapture --test-threads=1 >/out/on-xen.log 2>&1 || fail "$(grep -m 1 -E 'panicked|^error' -A 1 /out/on-xen.log | tr '\n' ' ')"
check "every test ran on Xen" test "$(grep -c 'ran on xen' /out/on-xen.log)" -ge 11
