# Counting the instructions of dom0 and Xen, where QEMU's clock counts instructions (`# qemu: -smp 1 -icount ...`).

# window GUEST COMMAND: dom0's instructions in 8 s in which the guest carries out a line. Two windows are equally long,
# so that what else dom0 does in one is what it does in the other.
window() {
    before=$(dom0_time)
    tell_guest "$1" "$2"
    sleep 8
    after=$(dom0_time)
    told_by_guest "$1" >/dev/null || fail "within 8 s, in $1: $2"
    echo $((after - before))
}

dom0_time() {
    xen-times | sed -n 's/^0 //p'
}

# figure ROW SIDE CASE TOTAL COUNT: what one of COUNT took, a line of JSON for the benches.
figure() {
    echo "{\"row\":\"$1\",\"side\":\"$2\",\"case\":\"$3\",\"instructions\":$(($4 / $5))}" >>/out/figures
}
