# Vifs are attached and detached while another has traffic; dom0's frontend; and a vif that is left to the kernel's backend.
# needs: xpv
# timeout: 180
modprobe tun
start dom0 xpv dom0 --xen --bridge xenbr0=tap:host0
wait_for 10 "the bridge's port" test -e /sys/class/net/host0
ip address add 10.0.0.1/24 dev host0
guest one 'vif=["mac=00:16:3e:00:00:07,bridge=xenbr0,script=nop"]'
serve dom0 8
# Two interfaces of a guest on one bridge: neither answers ARP for the other's address, as Linux would have it.
check_in_guest one "the interface comes up" 'echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
in_guest one '(nc 10.0.0.1 5001 </dev/null | md5sum >/tmp/fetched) 2>/dev/null &'

for round in 1 2; do
    check "a vif is attached" xl network-attach one mac=00:16:3e:00:01:07 bridge=xenbr0 script=nop
    check_in_guest one "it comes up" 'until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; ip address add 10.1.0.2/24 dev eth1; ip link set eth1 up'
    ip address add 10.1.0.1/24 dev host0 2>/dev/null
    check_in_guest one "dom0 answers on it" 'ping -c 2 -W 5 -I eth1 10.1.0.1'
    check "it is detached" xl network-detach one 1
    check_in_guest one "it is gone" 'until [ ! -e /sys/class/net/eth1 ]; do sleep 0.1; done'
done
check_in_guest one "the other vif's transfer arrived whole" "until [ -s /tmp/fetched ]; do sleep 0.1; done; grep -q $(cat /run/dom0.served) /tmp/fetched"

# In another network namespace: a kernel does not send frames between two of its own addresses.
modprobe xen-netfront
check "dom0 has a vif" xl network-attach 0 mac=00:16:3e:00:02:07 bridge=xenbr0 script=nop
wait_for 10 "dom0's frontend" test -e /sys/class/net/eth0
unshare -n sleep 1000 &
sleeper=$!
wait_for 10 "the network namespace" sh -c "[ \"\$(readlink /proc/$sleeper/ns/net)\" != \"\$(readlink /proc/self/ns/net)\" ]"
ip link set eth0 netns $sleeper
nsenter -t $sleeper -n sh -c 'ip address add 10.0.0.3/24 dev eth0; ip link set eth0 up'
check "dom0's frontend reaches the guest" nsenter -t $sleeper -n ping -c 2 -W 5 10.0.0.2
kill $sleeper
xl network-detach 0 0
wait_for 10 "dom0's vif is gone" sh -c '! xenstore-exists /local/domain/0/backend/vif/0'
check "the backend runs" running dom0

xl destroy one
stop dom0
modprobe xen-netback
bridge_up br0 10.2.0.1/24
start beside xpv dom0 --xen
check "a vif for the kernel" xl network-attach 0 mac=00:16:3e:00:03:07 bridge=br0 script=plain-vif
wait_for 10 "the log line" grep -q 'left to the kernel, whose xen-netback has it' /out/beside.log
wait_for 10 "the kernel serves it" in_state /local/domain/0/backend/vif/0/0 4
