# The contract of the hypervisor traits holds on real Xen, with dom0 as its own peer.
# needs: contract
contract xen:: --nocapture --test-threads=1 >/out/contract.log 2>&1 || fail "$(grep -m 1 -A 1 panicked /out/contract.log | tr '\n' ' ')"
check "checks ran" grep -q 'test xen::.* ok' /out/contract.log
check "none was ignored" grep -q '^test result: ok.* 0 ignored' /out/contract.log
