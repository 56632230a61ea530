# Limits of a stock guest's disks: by a policy, as xl passes no keys that it does not know, and live by `xpv block-set`.
# And a policy that is read again.
# needs: xpv
# timeout: 180
cat >/tmp/policy.toml <<POLICY
[[disk]]
domain = "on*"
bps-total = "100M"

[[disk]]
domain = "one"
vdev = "xvda"
iops-total = 10

[[disk]]
target = "/tmp/other"
iops-total = 7
POLICY
disk_file 64M
start dom0 xpv dom0 --xen --policy /tmp/policy.toml
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]'

# limit KEY: prints a limit that is in force; nothing if there is none.
limit() {
    xpv block-list one --json >/tmp/json || fail "xpv block-list"
    awk -v key="\"$1\":" '$1 == "\"limits\":" { on = 1 } $1 == "\"stats\":" { on = 0 }
        on && $1 == key { gsub(/[^0-9a-z]/, "", $2); print $2; exit }' /tmp/json
}

# takes LEAST MOST SIZE COUNT: reads so many blocks in the guest, one at a time, in so many hundredths of a second.
takes() {
    clock='cut -d" " -f1 /proc/uptime | tr -d .'
    check_in_guest one "$4 blocks of $3 in $1 to $2 hundredths of a second" \
        "from=\$($clock); dd if=/dev/xvda of=/dev/null bs=$3 count=$4 iflag=direct 2>/dev/null; took=\$((\$($clock) - from)); echo took \$took; test \$took -ge $1 && test \$took -le $2"
}

# writes: prints how many requests of writes dom0 has counted.
writes() {
    xpv block-list one --json >/tmp/json || fail "xpv block-list"
    awk '/"write":/ { on = 1 } on && /"requests":/ { gsub(/[^0-9]/, "", $2); print $2; exit }' /tmp/json
}

writes_above() {
    test "$(writes)" -gt "$1"
}

check "the policy's limit of the disk" test "$(limit iops-total)" = 10
check "and of the domain" test "$(limit bps-total)" = 104857600
# 10 a second, of which one and another may start at once: far below what an emulated guest reads without a limit.
takes 370 1200 4k 40
check "a limit is set live" xpv block-set one xvda iops-total=0
wait_for 10 "the limit to be gone" sh -c '! xpv block-list one --json | grep -q "\"iops-total\""'
takes 0 360 4k 40
check "the others stay" test "$(limit bps-total)" = 104857600
check "a limit of bytes is set live" xpv block-set one xvda bps-read=1M throttle-group=gold
wait_for 10 "the limit" sh -c 'xpv block-list one --json | grep -q "\"bps-read\": 1048576"'
check "the group" test "$(limit throttle-group)" = gold
# The first request and 50 ms are free.
takes 270 800 128k 24
check "a bad limit is refused" sh -c '! xpv block-set one xvda iops-total=fast 2>/tmp/error'
check "with what was found" grep -q 'iops-total: found "fast", expected a number' /tmp/error

# A successor has what was set, and the guest's I/O goes on.
start_writer one
stop dom0 KILL
start dom0 xpv dom0 --xen --policy /tmp/policy.toml
wait_for 10 "the next one to have the limit" sh -c 'xpv block-list one --json | grep -q "\"bps-read\": 1048576"'
check "xpv block-set takes it back to the policy" xpv block-set one xvda iops-total= bps-read= throttle-group=
wait_for 10 "the policy's limit" sh -c 'xpv block-list one --json | grep -q "\"iops-total\": 10[,]*$"'
check "and no other" test -z "$(limit bps-read)$(limit throttle-group)"
before=$(writes)
wait_for 20 "the writer to go on under its limit" writes_above $((before + 20))
check "a limit is taken off" xpv block-set one xvda iops-total=0
check_writer_continues one "without limits"
truncate -s 16M /tmp/other
check "a disk is attached" xl block-attach one format=raw,vdev=xvdb,access=rw,script=nop,target=/tmp/other
wait_for 10 "its limit by its target" sh -c 'xpv block-list one --json | grep -q "\"iops-total\": 7$\|\"iops-total\": 7,"'

# The policy is read again on a signal; a bad one changes nothing.
sed 's/iops-total = 7/iops-total = 9/' /tmp/policy.toml >/tmp/policy.new
mv /tmp/policy.new /tmp/policy.toml
kill -HUP "$(cat /run/dom0.started)"
wait_for 10 "its other limit" sh -c 'xpv block-list one --json | grep -q "\"iops-total\": 9$\|\"iops-total\": 9,"'
sed 's/iops-total = 9/iops-totl = 8/' /tmp/policy.toml >/tmp/policy.new
mv /tmp/policy.new /tmp/policy.toml
kill -HUP "$(cat /run/dom0.started)"
wait_for 10 "the error" grep -q 'failed to read the policy again.*policy.toml:12: disk: found "iops-totl"' /out/dom0.log
check "the limit stays" sh -c 'xpv block-list one --json | grep -q "\"iops-total\": 9$\|\"iops-total\": 9,"'
check_writer_continues one "under the policy that stays"
