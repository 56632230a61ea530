# xpv's netfront with Linux's network backend and bridge: pings, and files both ways, with offloads and without.
# timeout: 240
# guest-programs: xpv
modprobe xen-netback
bridge_up br0 10.0.0.1/24
mkdir /tmp/www
dd if=/dev/urandom of=/tmp/www/file bs=64k count=64 2>/dev/null
sum=$(md5sum </tmp/www/file | cut -d' ' -f1)
httpd -p 10.0.0.1:80 -h /tmp/www
GUEST_EXTRA=xpv.fronts=no guest one 'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=plain-vif"]'
front=/local/domain/1/device/vif/0
back=/local/domain/0/backend/vif/1/0
check_in_guest one "it serves files" 'mkdir /tmp/www && httpd -p 80 -h /tmp/www'

# frame_size: prints the mean length of frames from the guest; Linux counts from when the rings connect.
frame_size() {
    counts=/sys/class/net/vif1.0/statistics
    echo $(($(cat $counts/rx_bytes) / $(cat $counts/rx_packets)))
}

# serve ARGUMENTS: starts xpv in the guest, which connects the interface to a tap, and checks the connection to dom0.
serve() {
    in_guest one "{ xpv guest --xen $* >>/tmp/xpv.log 2>&1; cat /tmp/xpv.log; } &"
    wait_for 30 "both ends to be connected" sh -c "[ \$(xenstore-read $front/state)\$(xenstore-read $back/state) = 44 ]"
    wait_in_guest one "the tap has the address" 'grep 00:16:3e:00:00:07 /sys/class/net/xpv0/address'
    check_in_guest one "it is up" 'ip address add 10.0.0.2/24 dev xpv0'
    # Both states may still be those of a process that was killed.
    wait_in_guest one "dom0 answers" 'ping -c 1 -W 1 10.0.0.1 >/dev/null'
    check_in_guest one "dom0 answers pings" 'ping -c 3 -i 0.1 -W 5 10.0.0.1'
    check_in_guest one "a file comes from dom0" "wget -q -O /tmp/www/file http://10.0.0.1/file && md5sum /tmp/www/file | grep $sum"
    check "a file comes to dom0" sh -c "wget -q -O - http://10.0.0.2/file | md5sum | grep $sum"
    check "dom0's pings are answered" ping -q -c 3 -i 0.1 -W 5 10.0.0.2
    check_in_guest one "the file is removed" 'rm /tmp/www/file'
}

# stop_guest: stops xpv in the guest, and waits until both ends are closed.
stop_guest() {
    in_guest one 'kill $(pidof xpv)'
    wait_for 10 "both ends to be closed" sh -c "[ \$(xenstore-read $front/state)\$(xenstore-read $back/state) = 66 ]"
}

serve
xenstore-ls "$front"
size=$(frame_size)
check "TCP is not segmented: $size bytes a frame" test $size -gt 1514
stop_guest
serve
in_guest one 'kill -9 $(pidof xpv)'
serve --no-offload
xenstore-ls "$front"
size=$(frame_size)
check "without offloads it is: $size bytes a frame" test $size -le 1514
stop_guest
