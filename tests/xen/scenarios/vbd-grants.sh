# Few pages of persistent grants may stay mapped: a stock guest's others are copied, and its data is the same.
# needs: xpv
# timeout: 180
truncate -s 16M /tmp/disk
start dom0 xpv dom0 --xen --max-persistent-grants 64
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/tmp/disk"]'
check_in_guest one "random bytes are written" \
    'dd if=/dev/urandom of=/tmp/seed bs=1M count=8 2>/dev/null && dd if=/tmp/seed of=/dev/xvda bs=1M oflag=direct'
check_in_guest one "and read back" 'dd if=/dev/xvda bs=1M count=8 iflag=direct 2>/dev/null | cmp - /tmp/seed'
check "and are in the image" test "$(in_guest one 'md5sum /tmp/seed | cut -c 1-32')" = "$(head -c 8388608 /tmp/disk | md5sum | cut -c 1-32)"
xpv block-list one --json >/tmp/json
for kind in copied mapped reused; do check "pages $kind" grep -q "\"$kind\": [1-9]" /tmp/json; done
check "at most 64 stay mapped" test "$(grep -c /dev/xen/gntdev "/proc/$(cat /run/dom0.started)/maps")" -le 70
check "the disk has a descriptor of gntdev of its own" \
    test "$(ls -l "/proc/$(cat /run/dom0.started)/fd" | grep -c /dev/xen/gntdev)" -ge 2
check "the backend runs" running dom0
