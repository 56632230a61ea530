# A stock guest on our vif: a tap in dom0's Linux bridge stands for it; ping.
# needs: xpv
modprobe tun
bridge_up br0 10.0.0.1/24
start dom0 xpv dom0 --xen
guest one 'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=nop"]'
check_in_guest one "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
check_in_guest one "dom0 answers pings" 'ping -c 3 -W 5 10.0.0.1'
