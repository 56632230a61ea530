# xpv's xenstore client with the real xenstored, which must reply as xpv's own store does.
# needs: xenstore-conformance
# timeout: 40
for store in /var/run/xenstored/socket /dev/xen/xenbus; do
    XPV_XENSTORE=$store xenstore-conformance --test-threads=1 >/out/conformance.log 2>&1 ||
        fail "over $store: $(grep -m 1 -A 3 panicked /out/conformance.log | tr '\n' ' ')"
    check "all checks ran over $store" grep -q '^test result: ok' /out/conformance.log
done
