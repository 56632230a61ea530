# Row X2: instructions of dom0 and Xen for a frame from stock guest to stock guest, with xpv's bridge and with the kernel's.
# needs: xpv xen-times
# timeout: 900
# only: when named
# qemu: -smp 1 -icount shift=0,sleep=off
. /lib/counts.sh
few=500 many=4500
macs="00:16:3e:00:00:01 00:16:3e:00:00:02"

# frames COUNT BYTES GAP: prints a line for the sender's shell: the kernel's packet generator sends a frame every GAP
# nanoseconds.
frames() {
    settings="'count $1' 'pkt_size $2' 'delay $3' 'dst_mac ${macs#* }'"
    echo "for w in $settings; do echo \$w >/proc/net/pktgen/eth0; done; echo start >/proc/net/pktgen/pgctrl"
}

# received GUEST: prints the number of frames that the guest has received.
received() {
    in_guest "$1" 'cat /sys/class/net/eth0/statistics/rx_packets' | grep -E '^[0-9]+$'
}

# up GUEST: brings its interface up, without IPv6, so that it sends nothing by itself.
up() {
    check_in_guest "$1" "the interface is up" 'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set eth0 up'
    check_in_guest "$1" "it is connected" 'until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done'
}

# measure SIDE FROM TO: counts the frames from one guest to another.
measure() {
    up "$2"
    up "$3"
    check_in_guest "$2" "the generator is there" 'modprobe pktgen && echo add_device eth0 >/proc/net/pktgen/kpktgend_0'
    # The bridge learns both addresses.
    in_guest "$3" "modprobe pktgen && echo add_device eth0 >/proc/net/pktgen/kpktgend_0; $(frames 1 64 0)"
    in_guest "$2" "$(frames 300 64 100000)"
    for case in "64 0" "64 200000" "1514 0"; do
        start=$(received "$3")
        less=$(window "$2" "$(frames $few $case)")
        middle=$(received "$3")
        more=$(window "$2" "$(frames $many $case)")
        end=$(received "$3")
        count=$((end - middle - (middle - start)))
        figure X2 "$1" "${case% *} bytes, gap ${case#* } ns" $((more - less)) $count
        echo "$1 $case: $((middle - start)) of $few and $((end - middle)) of $many arrived"
    done
}

# pair BRIDGE SCRIPT: creates both guests on a bridge.
pair() {
    guest from "vif=[\"mac=${macs% *},bridge=$1,script=$2\"]"
    guest to "vif=[\"mac=${macs#* },bridge=$1,script=$2\"]"
}

start dom0 xpv dom0 --xen --bridge xenbr0
pair xenbr0 nop
measure ours from to
xl destroy from
xl destroy to
stop dom0

modprobe xen-netback
bridge_up br0 10.0.0.1/24
pair br0 plain-vif
measure linux from to
check "every case was measured" test "$(wc -l </out/figures)" = 6
