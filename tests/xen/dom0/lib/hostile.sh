# Attacks on the daemon started as `dom0`, by a test program in a guest whose tests are the attacks.

# attack GUEST COMMAND NAMES: runs each attack whose name starts with NAMES (a basic regular expression). After each the
# daemon must run, the scenario's function `check_others_served` must succeed, and the errors of the devices that were
# closed must be in the log.
attack() {
    GUEST_BOUND=240
    in_guest "$1" "$2 --list" | sed -n "s/^\($3.*\): test\$/\1/p" >/tmp/attacks
    check "there are attacks" test "$(wc -l </tmp/attacks)" -ge 4
    for attack in $(cat /tmp/attacks); do
        from=$(($(wc -c </out/dom0.log) + 1)) before=$(wakeups)
        in_guest "$1" "$2 --exact $attack --nocapture 2>&1" >/tmp/attack ||
            fail "$attack: $(grep -m 1 -A 1 panicked /tmp/attack | tr '\n' ' ')"
        check "${attack##*::}" grep -q '^test result: ok. 1 passed' /tmp/attack
        grep -q '^closed ' /tmp/attack && check "the error is logged" errors_logged "$from"
        if ms=$(sed -n 's/^sent .* events in \([0-9]*\) ms/\1/p' /tmp/attack) && [ -n "$ms" ]; then
            # A burst of 32 and then one every 2 ms, and 300 for the store and for the attacker's start and end.
            check "events were rate-limited" test $(($(wakeups) - before)) -le $((32 + 2 * ms + 300))
        fi
        check "the daemon runs" running dom0
        check_others_served
    done
}

# errors_logged FROM: the log's errors from byte FROM on are those of the attacker's lines `closed DEVICE: WORDS`, in order.
errors_logged() {
    tail -c "+$1" /out/dom0.log | grep ERROR >/tmp/lines
    sed -n 's/^closed //p' /tmp/attack | while IFS= read -r closed; do
        sed -n 1p /tmp/lines | grep -F "${closed%%: *}" | grep -qF "${closed#*: }" || fail "not in the log: $closed"
        sed -i 1d /tmp/lines
    done
    [ ! -s /tmp/lines ]
}

# wakeups: prints how often the daemon's threads have slept.
wakeups() {
    cat "/proc/$(cat /run/dom0.started)"/task/*/status | awk '/^voluntary_ctxt/ { sum += $2 } END { print sum }'
}

# destroy_attacker GUEST: destroys the guest. A domain whose pages are still mapped would remain as a zombie.
destroy_attacker() {
    domid=$(xl domid "$1")
    xl destroy "$1"
    wait_for 20 "the attacker's memory to be freed" sh -c "! xl list $domid"
}
