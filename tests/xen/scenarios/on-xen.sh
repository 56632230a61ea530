# The xen hypervisor's grants, copies and events, with dom0 as its own peer.
# needs: on-xen
on-xen --nocapture --test-threads=1 --skip of_another_domain >/out/on-xen.log 2>&1 || fail "$(grep -m 1 -E 'panicked|^error' -A 1 /out/on-xen.log | tr '\n' ' ')"
check "every test ran" grep -q '^test result: ok. [1-9][0-9]* passed; 0 failed; 0 ignored' /out/on-xen.log
