# Row X1: instructions of dom0 and Xen for a 4 KiB read of a stock guest, with xpv's backend and with the kernel's.
# needs: xpv xen-times
# timeout: 900
# only: when named
# qemu: -smp 1 -icount shift=0,sleep=off
. /lib/counts.sh
modprobe brd rd_nr=2 rd_size=16384
# Multiples of the 32 readers.
few=480 many=2496

# reads TOTAL DEPTH: prints a line for the guest's shell that makes TOTAL reads, DEPTH at a time.
reads() {
    direct="dd if=/dev/xvda of=/dev/null bs=4k iflag=direct count=$(($1 / $2)) skip=\$((i * 100)) 2>/dev/null"
    echo "i=0; while [ \$i -lt $2 ]; do $direct & i=\$((i + 1)); done; wait"
}

# measure SIDE GUEST: counts the reads of a guest.
measure() {
    check_in_guest "$2" "the disk is read" "$(reads 320 32)"
    for depth in 1 32; do
        less=$(window "$2" "$(reads $few $depth)")
        more=$(window "$2" "$(reads $many $depth)")
        figure X1 "$1" "depth $depth" $((more - less)) $((many - few))
    done
}

# ours SIDE OPTIONS: measures xpv's backend with these further options.
ours() {
    side=$1
    shift
    start dom0 xpv dom0 --xen "$@"
    guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/ram0"]'
    measure "$side" one
    xl destroy one
    stop dom0
}

# The first is the default; the other shows the cost of the other data path.
ours ours
ours "ours, copy" --reach copy

modprobe xen-blkback
guest two 'disk=["format=raw,vdev=xvda,access=rw,script=plain-block,target=/dev/ram1"]'
measure linux two
check "every case was measured" test "$(wc -l </out/figures)" = 6
