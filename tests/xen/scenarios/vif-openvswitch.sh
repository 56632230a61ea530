# Taps of xpv on Open vSwitch, where Xen's vif-openvswitch puts them: an access port, a trunk, and the ports after a restart and a detach.
# needs: xpv
# packages: openvswitch
# timeout: 180
# only: when named
modprobe tun
modprobe crc32c_generic
modprobe openvswitch
mkdir -p /etc/openvswitch /var/run/openvswitch /var/log/openvswitch
ovsdb-tool create /etc/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema
start ovsdb ovsdb-server /etc/openvswitch/conf.db --remote=punix:/var/run/openvswitch/db.sock
wait_for 10 "the database" test -S /var/run/openvswitch/db.sock
ovs-vsctl --no-wait init
# In an emulated machine that is idle the switch is not always woken for first frames, with or without xpv: some activity helps, and the scenario
# is run by its name.
while sleep 0.02; do :; done &
start ovs /usr/lib/openvswitch-switch/ovs-vswitchd
check "a switch" ovs-vsctl --timeout=20 add-br ovs0
ip address add 10.0.0.1/24 dev ovs0
ip link set ovs0 up
start dom0 xpv dom0 --xen
guest one 'vif=["mac=00:16:3e:00:00:07,bridge=ovs0,script=vif-openvswitch"]'
serve dom0 4
check "the script has made it a port" sh -c 'ovs-vsctl list-ports ovs0 | grep -qx vif1.0'
check "of this guest" sh -c 'ovs-vsctl get interface vif1.0 external_ids:attached-mac | grep -q 00:16:3e:00:00:07'
check_in_guest one "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
# The switch's own handlers of first frames need a while in a machine without other work.
wait_in_guest one "dom0 answers pings" 'ping -c 1 -W 1 10.0.0.1'
check_fetch one dom0 10.0.0.1

# VLAN 10 without tags, and a trunk of VLANs 10 and 20.
ovs-vsctl add-port ovs0 vlan10 tag=10 -- set interface vlan10 type=internal
ip address add 10.1.0.1/24 dev vlan10
ip link set vlan10 up
check "a vif in a VLAN" xl network-attach one mac=00:16:3e:00:01:07 bridge=ovs0.10 script=vif-openvswitch
check "the script has put it there" sh -c '[ "$(ovs-vsctl get port vif1.1 tag)" = 10 ]'
check_in_guest one "it comes up" 'until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; ip address add 10.1.0.2/24 dev eth1; ip link set eth1 up'
wait_in_guest one "dom0 answers in the VLAN" 'ping -c 1 -W 1 10.1.0.1'

# The next process takes the taps over, which stay ports.
stop dom0 KILL 2>/dev/null
start dom0 xpv dom0 --xen
wait_in_guest one "dom0 answers after a restart" 'ping -c 1 -W 1 10.0.0.1'
wait_in_guest one "and in the VLAN" 'ping -c 1 -W 1 10.1.0.1'
check "a vif is detached" xl network-detach one 1
wait_for 10 "its tap to be removed" test ! -e /sys/class/net/vif1.1
wait_for 10 "its port to be removed" sh -c '! ovs-vsctl list-ports ovs0 | grep -qx vif1.1'
check "the backend runs" running dom0
