# A guest that lies, races and floods: its disk alone is closed, with a line that says why, and a stock guest's goes on.
# needs: xpv
# guest-programs: hostile-vbd
# timeout: 600
cp /in/disk.img /tmp/disk
start dom0 xpv dom0 --xen
guest good 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/tmp/disk"]'
ram=format=raw,access=rw,script=nop,target=ram:1048576
GUEST_EXTRA=xpv.fronts=no guest bad "disk=[\"vdev=xvda,$ram\",\"vdev=xvdb,$ram\"]"
domid=$(xl domid bad)

# What the attacker knows to be closed must have been told, each in a line of its own, and nothing else.
told() {
    tail -c "+$1" /out/dom0.log | grep ERROR >/tmp/lines
    sed -n 's/^closed //p' /tmp/attack | while IFS= read -r closed; do
        sed -n 1p /tmp/lines | grep -F "${closed%%: *}" | grep -qF "${closed#*: }" || fail "the log tells nothing of $closed"
        sed -i 1d /tmp/lines
    done
    [ ! -s /tmp/lines ]
}

# How often the back end's threads went to sleep and were woken.
wakeups() {
    cat "/proc/$(cat /run/dom0.started)"/task/*/status | awk '/^voluntary_ctxt/ { sum += $2 } END { print sum }'
}

in_guest bad 'hostile-vbd --list' | sed -n 's/^xen::\(.*\): test$/\1/p' >/tmp/attacks
check "there are attacks" test "$(wc -l </tmp/attacks)" -ge 12
for attack in $(cat /tmp/attacks); do
    from=$(($(wc -c </out/dom0.log) + 1)) before=$(wakeups)
    in_guest bad "XPV_VBDS=51712/51728 hostile-vbd --exact xen::$attack --nocapture 2>&1" >/tmp/attack ||
        fail "$attack: $(grep -m 1 -A 1 panicked /tmp/attack | tr '\n' ' ')"
    check "$attack" grep -q '^test result: ok. 1 passed' /tmp/attack
    grep -q '^closed ' /tmp/attack && check "and it was told why" told "$from"
    if ms=$(sed -n 's/^sent .* events in \([0-9]*\) ms/\1/p' /tmp/attack) && [ -n "$ms" ]; then
        # 32 at once and then one every two milliseconds, and what the store and the attacker's start and end take.
        check "and events were slowed" test $(($(wakeups) - before)) -le $((32 + 2 * ms + 300))
    fi
    check "the back end lives" running dom0
    check_in_guest good "the other guest's disk" 'dd if=/dev/urandom of=/tmp/a bs=64k count=8 2>/dev/null && dd if=/tmp/a of=/dev/xvda bs=64k seek=100 oflag=direct 2>/dev/null && dd if=/dev/xvda bs=64k skip=100 count=8 iflag=direct 2>/dev/null | cmp - /tmp/a'
done

# A domain whose pages somebody still maps would stay as a zombie.
xl destroy bad
wait_for 20 "the attacker's memory is given back" sh -c "! xl list $domid"
xl destroy good
check "the back end ends in order" stop dom0
