# Counting the instructions of dom0 and Xen, where QEMU's clock counts instructions (`# qemu: -smp 1 -icount ...`).

# The guests' consoles are kept in memory: while dom0 waits for the host's 9p, the machine's clock runs on.
CONSOLES=/tmp/consoles
mkdir -p $CONSOLES
kill "$(cat /run/xenconsoled.pid)"
wait_for 10 "the end of xenconsoled" sh -c "! kill -0 $(cat /run/xenconsoled.pid)"
xenconsoled --log=guest --log-dir=$CONSOLES --pid-file=/run/xenconsoled.pid

# window GUEST COMMAND: dom0's instructions in 8 s in which the guest carries out a line. Two windows are equally long,
# so that what else dom0 does in one is what it does in the other.
window() {
    before=$(dom0_time)
    tell_guest "$1" "$2"
    sleep 8
    after=$(dom0_time)
    # Twice: a program of the emulated machine's dies for no reason once in a thousand times.
    guest_answered "$1" || guest_answered "$1" || fail "not within 8 s, in $1: $2"
    told_by_guest "$1" >/dev/null || fail "in $1: $2"
    [ "$before" -gt 0 ] && [ "$after" -gt "$before" ] || fail "no reading of dom0's time"
    echo $((after - before))
}

dom0_time() {
    xen-times | sed -n 's/^0 //p'
}

# figure ROW SIDE CASE TOTAL COUNT: what one of COUNT took, a line of JSON for the benches.
figure() {
    echo "{\"row\":\"$1\",\"side\":\"$2\",\"case\":\"$3\",\"instructions\":$(($4 / $5))}" >>/out/figures
}
