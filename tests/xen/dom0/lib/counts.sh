# Counts instructions of dom0 and Xen, on a machine whose clock counts instructions (`# qemu: -smp 1 -icount ...`).

# The console logs are in memory: the machine's clock would also count while dom0 waits for 9p of the host.
CONSOLES=/tmp/consoles
mkdir -p $CONSOLES
kill "$(cat /run/xenconsoled.pid)"
wait_for 10 "the end of xenconsoled" sh -c "! kill -0 $(cat /run/xenconsoled.pid)"
xenconsoled --log=guest --log-dir=$CONSOLES --pid-file=/run/xenconsoled.pid

# window GUEST COMMAND: prints dom0's instructions in 8 s in which the guest runs a line. Windows are equally long, so that
# dom0's other work is the same in each.
window() {
    before=$(dom0_time)
    send_to_guest "$1" "$2"
    sleep 8
    after=$(dom0_time)
    # Tried twice: on the emulated machine a program crashes without cause about once in a thousand runs.
    guest_finished "$1" || guest_finished "$1" || fail "not within 8 s, in $1: $2"
    guest_output "$1" >/dev/null || fail "in $1: $2"
    [ "$before" -gt 0 ] && [ "$after" -gt "$before" ] || fail "no reading of dom0's time"
    echo $((after - before))
}

# dom0_time: prints the instructions of dom0 so far.
dom0_time() {
    xen-times | sed -n 's/^0 //p'
}

# figure ROW SIDE CASE TOTAL COUNT: writes the instructions of one operation of COUNT, as a line of JSON for the benches.
figure() {
    echo "{\"row\":\"$1\",\"side\":\"$2\",\"case\":\"$3\",\"instructions\":$(($4 / $5))}" >>/out/figures
}
