# Taps of xpv that systemd-networkd finds by their names: one it puts into its bridge, one it gives an address.
# needs: xpv
# packages: networkd
# timeout: 180
modprobe tun
modprobe bridge
mkdir -p /etc/systemd/network /run/systemd /run/udev
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
echo 'root:x:0:' >/etc/group
echo 'systemd-network:x:998:998::/:/bin/false' >>/etc/passwd
echo 'systemd-network:x:998:' >>/etc/group
printf '[NetDev]\nName=guests\nKind=bridge\n[Bridge]\nForwardDelaySec=0\nSTP=no\n' >/etc/systemd/network/10-guests.netdev
printf '[Match]\nName=guests\n[Network]\nAddress=10.0.0.1/24\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n' >/etc/systemd/network/10-guests.network
printf '[Match]\nName=vif*.0\n[Network]\nBridge=guests\n' >/etc/systemd/network/20-vif.network
printf '[Match]\nName=routed*\n[Network]\nAddress=10.1.0.1/24\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n' >/etc/systemd/network/30-routed.network
ln -s /bin/udevadm /lib/systemd/systemd-udevd
start udev /lib/systemd/systemd-udevd
wait_for 10 "udev" test -S /run/udev/control
udevadm trigger --subsystem-match=net --action=add
start networkd /lib/systemd/systemd-networkd
wait_for 20 "networkd's bridge" test -e /sys/class/net/guests/bridge
start dom0 xpv dom0 --xen
guest one 'vif=["mac=00:16:3e:00:00:07,script=nop"]'
serve dom0 4
wait_for 10 "networkd to put the tap into its bridge" test -e /sys/class/net/guests/brif/vif1.0
check_in_guest one "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
check_in_guest one "dom0 answers pings" 'ping -c 3 -W 5 10.0.0.1'
check_fetch one dom0 10.0.0.1
check "a vif with an address of networkd's" xl network-attach one mac=00:16:3e:00:01:07 script=nop vifname=routed0
wait_for 10 "networkd's address" sh -c 'ip -4 address show dev routed0 | grep -q 10.1.0.1/24'
check_in_guest one "it comes up" 'until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; ip address add 10.1.0.2/24 dev eth1; ip link set eth1 up'
check_in_guest one "dom0 answers on it" 'ping -c 2 -W 5 10.1.0.1'
check "it is detached" xl network-detach one 1
wait_for 10 "its tap to be removed" test ! -e /sys/class/net/routed0
check "networkd runs" running networkd
check "the backend runs" running dom0
