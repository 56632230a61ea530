# Limits of a stock guest's disks: by a policy, as xl passes no keys that it does not know, and live by `xpv block-set`.
# needs: xpv
# timeout: 180
cat >/tmp/policy.toml <<POLICY
[[disk]]
domain = "on*"
bps-total = "100M"

[[disk]]
domain = "one"
vdev = "xvda"
iops-total = 50

[[disk]]
target = "/tmp/other"
iops-total = 7
POLICY
disk_file 16M
start dom0 xpv dom0 --xen --policy /tmp/policy.toml
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]'

# limit KEY: prints a limit that is in force; nothing if there is none.
limit() {
    xpv block-list one --json | awk -v key="\"$1\":" '$1 == "\"limits\":" { on = 1 } $1 == "\"stats\":" { on = 0 }
        on && $1 == key { gsub(/[^0-9a-z]/, "", $2); print $2; exit }'
}

# takes LEAST MOST COUNT: reads so many blocks in the guest, one at a time, in so many hundredths of a second.
takes() {
    check_in_guest one "reads of $3 blocks" "
        from=\$(cut -d' ' -f1 /proc/uptime | tr -d .)
        dd if=/dev/xvda of=/dev/null bs=4k count=$3 iflag=direct 2>/dev/null
        took=\$((\$(cut -d' ' -f1 /proc/uptime | tr -d .) - from))
        echo \"$3 blocks took \$took hundredths of a second\"
        test \$took -ge $1 -a \$took -le $2"
}

check "the policy's limit of the disk" test "$(limit iops-total)" = 50
check "and of the domain" test "$(limit bps-total)" = 104857600
# 50 a second, of which 2 and one more may start at once.
takes 390 1000 200
check "a limit is set live" xpv block-set one xvda iops-total=0
wait_for 10 "the limit to be gone" sh -c '! xpv block-list one --json | grep -q "\"iops-total\""'
takes 0 300 200
check "the others stay" test "$(limit bps-total)" = 104857600
check "a limit of bytes is set live" xpv block-set one xvda bps-read=1M throttle-group=gold
wait_for 10 "the limit" sh -c 'xpv block-list one --json | grep -q "\"bps-read\": 1048576"'
check "the group" test "$(limit throttle-group)" = gold
check_in_guest one "a MiB is read in requests of 128 KiB" '
    from=$(cut -d" " -f1 /proc/uptime | tr -d .)
    dd if=/dev/xvda of=/dev/null bs=128k count=24 iflag=direct 2>/dev/null
    took=$(($(cut -d" " -f1 /proc/uptime | tr -d .) - from))
    echo "3 MiB took $took hundredths of a second"
    test $took -ge 280 -a $took -le 800'
check "a bad limit is refused" sh -c '! xpv block-set one xvda iops-total=fast 2>/tmp/error'
check "with what was found" grep -q 'iops-total: found "fast", expected a number' /tmp/error

# What was set goes with the process that has it in no way: a successor reads it, and the guest's I/O goes on.
start_writer one
stop dom0 KILL
start dom0 xpv dom0 --xen --policy /tmp/policy.toml
wait_for 10 "the next one to have the limit" sh -c 'xpv block-list one --json | grep -q "\"bps-read\": 1048576"'
check "xpv block-set takes it back to the policy" xpv block-set one xvda iops-total= bps-read= throttle-group=
wait_for 10 "the policy's limit" sh -c 'xpv block-list one --json | grep -q "\"iops-total\": 50"'
check "and no other" test -z "$(limit bps-read)$(limit throttle-group)"
check_writer_continues one "under its limit"
truncate -s 16M /tmp/other
check "a disk is attached" xl block-attach one format=raw,vdev=xvdb,access=rw,script=nop,target=/tmp/other
wait_for 10 "its limit by its target" sh -c 'xpv block-list one --json | grep -q "\"iops-total\": 7$\|\"iops-total\": 7,"'
