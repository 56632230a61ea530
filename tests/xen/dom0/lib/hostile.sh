# Attacks on the daemon started as `dom0`, by a guest with a program that knows them by name.

# attack GUEST COMMAND NAMES: carries out every attack whose name begins so (a basic regular expression), one by one.
# After each the daemon must live and `others_are_served`, a function of the scenario's, must succeed; what the attacker
# knows to be closed must have been told.
attack() {
    GUEST_BOUND=240
    in_guest "$1" "$2 --list" | sed -n "s/^\($3.*\): test\$/\1/p" >/tmp/attacks
    check "there are attacks" test "$(wc -l </tmp/attacks)" -ge 4
    for attack in $(cat /tmp/attacks); do
        from=$(($(wc -c </out/dom0.log) + 1)) before=$(wakeups)
        in_guest "$1" "$2 --exact $attack --nocapture 2>&1" >/tmp/attack ||
            fail "$attack: $(grep -m 1 -A 1 panicked /tmp/attack | tr '\n' ' ')"
        check "${attack##*::}" grep -q '^test result: ok. 1 passed' /tmp/attack
        grep -q '^closed ' /tmp/attack && check "it was told why" told "$from"
        if ms=$(sed -n 's/^sent .* events in \([0-9]*\) ms/\1/p' /tmp/attack) && [ -n "$ms" ]; then
            # 32 at once and then one every two milliseconds, and what the store and the attacker's start and end take.
            check "events were slowed" test $(($(wakeups) - before)) -le $((32 + 2 * ms + 300))
        fi
        check "the daemon lives" running dom0
        others_are_served
    done
}

# Each line `closed DEVICE: WORDS` of the attacker's has its line in the log, in order, and nothing else has.
told() {
    tail -c "+$1" /out/dom0.log | grep ERROR >/tmp/lines
    sed -n 's/^closed //p' /tmp/attack | while IFS= read -r closed; do
        sed -n 1p /tmp/lines | grep -F "${closed%%: *}" | grep -qF "${closed#*: }" || fail "the log tells nothing of $closed"
        sed -i 1d /tmp/lines
    done
    [ ! -s /tmp/lines ]
}

# How often the daemon's threads went to sleep and were woken.
wakeups() {
    cat "/proc/$(cat /run/dom0.started)"/task/*/status | awk '/^voluntary_ctxt/ { sum += $2 } END { print sum }'
}

# end_attacker GUEST: a domain whose pages somebody still maps would stay as a zombie.
end_attacker() {
    domid=$(xl domid "$1")
    xl destroy "$1"
    wait_for 20 "the attacker's memory is given back" sh -c "! xl list $domid"
}
