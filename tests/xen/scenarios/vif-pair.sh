# Two stock guests with two vbds and two vifs each, on xpv's bridges: ping, TCP, unsegmented frames, 9,000 bytes, rates both ways; a capture, locks and VLANs;
# and dom0.
# needs: xpv
# timeout: 180
modprobe tun
start dom0 xpv dom0 --xen --bridge xenbr0=tap:host0 --bridge xenbr1
wait_for 10 "the bridge's port" test -e /sys/class/net/host0
ip link set host0 mtu 9000
ip address add 10.0.0.1/24 dev host0
number=1
for name in one two; do
    number=$((number + 1))
    truncate -s 4M /tmp/$name-a /tmp/$name-b
    raw=format=raw,access=rw,script=nop,target=/tmp/$name
    create_guest $name "disk=[\"vdev=xvda,$raw-a\",\"vdev=xvdb,$raw-b\"]" "vif=[\"mac=00:16:3e:00:00:0$number,bridge=xenbr0,script=nop,mtu=9000\",
        \"mac=00:16:3e:00:01:0$number,bridge=xenbr1,script=nop\"]"
done
number=1
for name in one two; do
    number=$((number + 1))
    wait_for 90 "guest $name" grep -q '##ready' /out/guest-$name.log
    check_in_guest $name "both interfaces come up" "for n in 0 1; do ip address add 10.\$n.0.$number/24 dev eth\$n && ip link set eth\$n up || exit; done"
    check_in_guest $name "both disks are written" \
        'for d in a b; do dd if=/dev/urandom of=/tmp/$d bs=1M count=4 2>/dev/null && cp /tmp/$d /dev/xvd$d || exit; done; sync'
    serve $name 1
done
serve dom0 2

check_in_guest one "the other guest answers" 'ping -c 2 -W 5 10.0.0.3'
check_in_guest one "and on the other bridge" 'ping -c 2 -W 5 10.1.0.3'

xpv network-capture one 0 -c 4 -w /out/one.pcapng --host 10.0.0.3 &
wait_for 10 "a capture" test -s /out/one.pcapng
check_in_guest one "pings are captured" 'ping -c 2 -W 5 10.0.0.3'
check "the capture ends by itself" wait $!
check "with four frames" test "$(stat -c %s /out/one.pcapng)" -gt 400
check_in_guest one "it has another address" 'ip address add 10.0.0.77/24 dev eth0 && ping -c 1 -W 5 -I 10.0.0.77 10.0.0.3'
check "one is locked to its address" xpv network-set one 0 ip=10.0.0.2 lock=ip
wait_for 10 "the lock" grep -q 'lock.*ip' /out/dom0.log
check_in_guest one "it cannot send from another address" '! ping -c 1 -W 2 -I 10.0.0.77 10.0.0.3'
check_in_guest one "and from its own" 'ping -c 2 -W 5 -I 10.0.0.2 10.0.0.3'
check "what was dropped is counted" sh -c 'xpv network-list one --json | grep -E "\"lock_(ip|arp)\": [1-9]"'
check "one is in a VLAN" xpv network-set one 0 ip= lock= vlan=10
check_in_guest one "where it is alone" '! ping -c 1 -W 2 10.0.0.3'
check "two is in it" xpv network-set two 0 vlan=10
check_in_guest one "and answers" 'ping -c 2 -W 5 10.0.0.3'
check "none is in a VLAN" xpv network-set one 0 vlan=
check "nor the other" xpv network-set two 0 vlan=
longest=$(bytes_a_frame two rx eth0 check_fetch two one 10.0.0.2)
check "frames between guests are not segmented ($longest bytes a frame)" test "$longest" -gt 1514
check_fetch one two 10.1.0.3 "the other bridge"
check_fetch two dom0 10.0.0.1
check_fetch dom0 one 10.0.0.2
xenstore-write /local/domain/0/backend/vif/1/0/rate 12500,50000
wait_for 10 "the rate limit" grep -q 'rate limit changed rate=12500 bytes in 50ms' /out/dom0.log
began=$(date +%s)
check_fetch dom0 one 10.0.0.2 "at 250,000 bytes a second"
check "1 MiB took at least three seconds" test $(($(date +%s) - began)) -ge 3
xenstore-rm /local/domain/0/backend/vif/1/0/rate
check "what the other is sent is limited" xpv network-set two 0 rate-in=2Mb/s
wait_for 10 "that limit" grep -q 'receiving rate limit changed rate_in=12500 bytes in 50ms' /out/dom0.log
began=$(date +%s)
check_fetch two dom0 10.0.0.1 "at 250,000 bytes a second"
check "1 MiB took at least three seconds" test $(($(date +%s) - began)) -ge 3
check "what did not fit was dropped" sh -c 'xpv network-list two --json | grep -E "\"rate_in\": [1-9]"'
check "the limit is taken off" xpv network-set two 0 rate-in=
for name in one two; do
    check_in_guest $name "9,000 bytes are taken" 'ip link set eth0 mtu 9000'
done
longest=$(bytes_a_frame two rx eth0 check_in_guest one "9,000 bytes cross" 'ping -A -c 20 -s 8972 -W 5 10.0.0.3')
check "in one frame each ($longest bytes)" test "$longest" -gt 7000
check_fetch one two 10.0.0.3 "frames of 9,000 bytes"
check_fetch two one 10.0.0.2 "frames of 9,000 bytes"

# What is changed live outlives the process.
check "the bridge has a setting" xpv bridge set xenbr1 ageing_time=120
check "the host's port is in a VLAN" xpv bridge vlan add dev host0 vid 30
check "a station is given" xpv bridge fdb add 02:00:00:00:00:77 dev vif2.1 static
check "a port is added" xpv bridge port add tap:span0,learning=off br xenbr1
check "a mirror is made" xpv bridge mirror add watch br xenbr1 src vif1.1 output span0
shown() {
    xpv bridge show xenbr1 --json | grep ageing_time
    xpv bridge vlan show dev host0
    xpv bridge fdb get 02:00:00:00:00:77 br xenbr1
    xpv bridge mirror show | sed 's/: [0-9]* frames.*//'
}
before=$(shown)

stop dom0 KILL
start again xpv dom0 --xen --bridge xenbr0=tap:host0 --bridge xenbr1
check_fetch one two 10.0.0.3 "by a restarted backend"
check_fetch two one 10.1.0.2 "and on the other bridge"
for name in one two; do
    check_in_guest $name "both disks are read" \
        'for d in a b; do test "$(dd if=/dev/xvd$d bs=1M iflag=direct 2>/dev/null | md5sum)" = "$(md5sum </tmp/$d)" || exit; done'
done
same() { [ "$(shown)" = "$before" ]; }
wait_for 20 "what was changed to be there again" same
echo "$before" | sed 's/^/kept: /'
check "all vifs were resumed" test "$(grep -c 'vif{.*resumed' /out/again.log)" = 4
check "all disks were resumed" test "$(grep -c 'vbd{.*resumed' /out/again.log)" = 4
check "no frame was refused" sh -c '! grep -E "WARN|ERROR" /out/dom0.log /out/again.log'
