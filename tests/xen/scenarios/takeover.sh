# The previous commit's backends are killed while a stock guest uses its disk and interface: this commit's resume both.
# needs: xpv xpv-previous
# timeout: 240
modprobe tun
bridge_up br0 10.0.0.1/24
disk_file 64M
# By the name under which it is shipped, as processes of this name take turns.
mkdir /tmp/previous && cp "$(command -v xpv-previous)" /tmp/previous/xpv
start previous /tmp/previous/xpv dom0 --xen
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]' \
          'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=nop"]'
start_writer one
check_in_guest one "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
check_in_guest one "dom0 answers pings" 'ping -c 1 -W 5 10.0.0.1'
in_guest one '(ping -i 0.2 10.0.0.1 >/tmp/pings 2>/dev/null &)'
serve dom0 8
check_writer_continues one "with the previous commit's backends"
stop previous KILL 2>/dev/null
start present xpv dom0 --xen
wait_for 10 "the disk's ring to be resumed" grep -q 'vbd{.*resumed' /out/present.log
wait_for 10 "the vif's rings to be resumed" grep -q 'vif{.*resumed' /out/present.log
check_writer_continues one "after the takeover"
check_in_guest one "ping continues" 'at=$(wc -l </tmp/pings); until [ $(wc -l </tmp/pings) -gt $((at + 3)) ]; do sleep 0.1; done'
check_fetch one dom0 10.0.0.1 "after the takeover"
# An upgrade without a kill: the earlier process exits, and leaves the devices to the next.
stop present
start next xpv dom0 --xen
check_writer_continues one "after an upgrade"
check_written one
check "the disk is detached" xl block-detach one xvda
check "the vif is detached" xl network-detach one 0
wait_for 10 "no log to remain" sh -c '[ -z "$(ls /run/xpv/inflight)" ]'
