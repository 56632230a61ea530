# Bursts of 10 to 600 datagrams between two stock guests, and between a guest and dom0: all arrive, none waits for a tick.
# needs: xpv udp-burst
# guest-programs: udp-burst
# timeout: 240
modprobe tun
start dom0 xpv dom0 --xen --bridge xenbr0=tap:host0
wait_for 10 "the bridge's port" test -e /sys/class/net/host0
ip address add 10.0.0.1/24 dev host0
for number in 2 3; do
    create_guest guest$number "vif=[\"mac=00:16:3e:00:00:0$number,bridge=xenbr0,script=nop\"]"
done
(udp-burst receive 0.0.0.0:7777 >/out/received-dom0.log 2>&1 &)
for number in 2 3; do
    wait_for 90 "guest$number" grep -q '##ready' /out/guest-guest$number.log
    check_in_guest guest$number "the interface comes up, and bursts are received" \
        "ip address add 10.0.0.$number/24 dev eth0 && ip link set eth0 up && (udp-burst receive 0.0.0.0:7777 >/tmp/received 2>&1 &)"
    wait_in_guest guest$number "from now on" 'grep -q ready /tmp/received'
done
check_in_guest guest2 "the other guest answers" 'ping -c 1 -W 10 10.0.0.3'

# A datagram that waits for the bridge's look at all ports, after a second at the earliest, is late.
check_bursts() {
    at "$1" "udp-burst send $2:7777 900" >"/out/bursts-$1-$2.log" 2>&1 || fail "bursts from $1 to $2: $(tail -n 1 "/out/bursts-$1-$2.log")"
    echo "check: bursts from $1 to $2: all of $(grep -c 'all have arrived' "/out/bursts-$1-$2.log")"
}
check_bursts guest2 10.0.0.3
check_bursts guest3 10.0.0.2
check_bursts guest2 10.0.0.1
check_bursts dom0 10.0.0.3
for number in 2 3; do
    check "no wake-up of guest$number was missed" \
        sh -c "xpv network-list guest$number --json >/tmp/json && grep -q '\"missed\": 0' /tmp/json && ! grep '\"missed\": [1-9]' /tmp/json"
done
check "nothing is warned of" sh -c '! grep -E "WARN|ERROR" /out/dom0.log'
