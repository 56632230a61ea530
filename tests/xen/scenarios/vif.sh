# A stock guest on xpv's vif, with a tap in dom0's Linux bridge: ping, TCP both ways, unsegmented frames, 9,000 bytes.
# needs: xpv
# timeout: 180
modprobe tun
bridge_up br0 10.0.0.1/24
start dom0 xpv dom0 --xen
guest one 'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=nop,mtu=9000"]'
serve dom0 4
serve one 4
check_in_guest one "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
check_in_guest one "dom0 answers pings" 'ping -c 3 -W 5 10.0.0.1'

up=$(bytes_a_frame dom0 rx vif1.0 check_fetch dom0 one 10.0.0.2)
down=$(bytes_a_frame dom0 tx vif1.0 check_fetch one dom0 10.0.0.1)
check "the guest's frames are not segmented ($up bytes a frame)" test "$up" -gt 1514
check "dom0's frames are not segmented ($down bytes a frame)" test "$down" -gt 1514
# Without duplicate address detection the addresses are usable at once.
echo 0 >/proc/sys/net/ipv6/conf/br0/accept_dad
ip address add fd00::1/64 dev br0
check_in_guest one "the guest has an IPv6 address, and dom0 answers" "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip address add fd00::2/64 dev eth0 && ping -6 -c 2 -W 5 fd00::1"
up=$(bytes_a_frame dom0 rx vif1.0 check_fetch dom0 one fd00::2)
check_fetch one dom0 fd00::1
check "IPv6 frames are not segmented ($up bytes a frame)" test "$up" -gt 1514

ip link set br0 mtu 9000
check_in_guest one "the guest takes 9,000 bytes" 'ip link set eth0 mtu 9000'
longest=$(bytes_a_frame dom0 rx vif1.0 check_in_guest one "9,000 bytes cross" 'ping -A -c 20 -s 8972 -W 5 10.0.0.1')
check "in one frame each ($longest bytes)" test "$longest" -gt 7000
check_fetch dom0 one 10.0.0.2 "frames of 9,000 bytes"
check_fetch one dom0 10.0.0.1 "frames of 9,000 bytes"

# Another vif with Xen's own script, which renames the tap, and without scatter-gather and segmentation offload.
bridge_up br1 10.1.0.1/24
xl pause one
check "a vif by vif-bridge" xl network-attach one mac=00:16:3e:00:01:07 bridge=br1 script=vif-bridge vifname=stock0
for feature in sg gso-tcpv4 gso-tcpv6; do
    xenstore-write /local/domain/0/backend/vif/1/1/feature-$feature 0
done
xl unpause one
check "the script has added it to the bridge" test -e /sys/class/net/br1/brif/stock0
check_in_guest one "it comes up" 'until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; ip address add 10.1.0.2/24 dev eth1; ip link set eth1 up'
up=$(bytes_a_frame dom0 rx stock0 check_fetch dom0 one 10.1.0.2)
check "the guest's frames are segmented ($up bytes a frame)" test "$up" -le 1514
check "it is detached" xl network-detach one 1
wait_for 10 "its tap to be removed" test ! -e /sys/class/net/stock0
wait_for 10 "its response log to be removed" test ! -e /run/xpv/inflight/vif-1-1-tx
check "the backend runs" running dom0
