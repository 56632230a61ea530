# `xpv block-list --json`, `network-list --json` and `list --json` beside xl: counters that grow with a stock guest's I/O.
# needs: xpv
# timeout: 180
modprobe tun
bridge_up br0 10.0.0.1/24
disk_file 16M
start dom0 xpv dom0 --xen
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]' \
    'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=nop"]'

# number COMMAND KEY...: prints the number behind the last of these keys, of which each is inside the one before.
number() {
    $1 >/tmp/json || fail "$1"
    shift
    awk -v keys="$*" 'BEGIN { last = split(keys, key, " "); at = 1 }
        index($0, "\"" key[at] "\":") && at++ == last { gsub(/[^0-9]/, "", $2); print $2; exit }' /tmp/json
}

# grows WHAT LEAST COMMAND KEY...: since `before` was set the number has grown by that much.
grows() {
    what=$1 least=$2
    shift 2
    after=$(number "$@")
    check "$what: $before, now $after" test "$after" -ge $((before + least))
}

disks="xpv block-list one --json"
before=$(number "$disks" stats read requests)
check_in_guest one "the disk is read" 'dd if=/dev/xvda of=/dev/null bs=4k count=256 iflag=direct'
grows "reads" 256 "$disks" stats read requests
before=$(number "$disks" stats write bytes)
check_in_guest one "the disk is written" 'dd if=/dev/zero of=/dev/xvda bs=4k count=100 oflag=direct'
grows "bytes written" 409600 "$disks" stats write bytes
before=0
grows "median latency of reads in ns" 1 "$disks" stats read latency_ns p50
grows "pages mapped" 1 "$disks" stats grants mapped
grows "persistent grants used again" 100 "$disks" stats grants reused
grows "events of the guest" 1 "$disks" stats notifications received
grows "events sent" 1 "$disks" stats notifications sent
check "no errors" test "$(number "$disks" stats read errors io)" = 0

vifs="xpv network-list 1 --json"
check_in_guest one "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
before=$(number "$vifs" stats transmit requests)
check_in_guest one "dom0 answers pings" 'ping -c 10 -A -W 5 10.0.0.1'
grows "frames of the guest" 10 "$vifs" stats transmit requests
before=0
grows "bytes to the guest" 980 "$vifs" stats receive bytes
grows "grant copies" 20 "$vifs" stats grants copied
grows "events of the guest" 1 "$vifs" stats notifications received

before=0
grows "reads of the domain" 256 "xpv list one --json" stats vbd read requests
grows "frames of the domain" 10 "xpv list one --json" stats vif transmit requests
check "xl and xpv list the same disk" test "$(xpv block-list one | awk 'NR == 2 { print $NF }')" = - -a \
    "$(xl block-list one | awk 'NR == 2 { print $1, $NF }')" = "$(xpv block-list one | awk 'NR == 2 { print $1, $6 }')"
check "and the same interface" test "$(xl network-list one | awk 'NR == 2 { print $3 }')" = "$(xpv network-list one | awk 'NR == 2 { print $3 }')"
xl block-attach one format=raw,vdev=xvdb,access=ro,script=nop,target=/dev/loop0 >/dev/null 2>&1 &
attach=$!
wait_for 10 "why a second user of the disk is not served" \
    sh -c "$disks | grep -A 99 51728 | grep '\"error\": \".*/dev/loop0'"
wait $attach

# A standby takes the socket over; without any process the devices are listed all the same.
start standby xpv dom0 --xen
wait_for 10 "the standby's log" grep -q "another process serves this host" /out/standby.log
stop dom0
wait_for 10 "the standby to answer" sh -c "$disks | grep -q '\"requests\"'"
stop standby KILL
check "no process answers" sh -c "$disks | grep '\"stats\": null'"
check "a stale socket is left" test -S /run/xpv/control.sock
start dom0 xpv dom0 --xen
wait_for 10 "the next one to answer" sh -c "$disks | grep -q '\"requests\"'"
check "the socket is root's alone" test "$(stat -c %a /run/xpv/control.sock)" = 600
