# The network backend is killed and replaced, twice, and stopped and replaced: a stock guest's TCP and ping continue.
# needs: xpv
# timeout: 180
modprobe tun
bridge_up br0 10.0.0.1/24
start first xpv dom0 --xen
guest one 'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=nop"]'
serve dom0 12
serve one 12
check_in_guest one "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
check_in_guest one "dom0 answers pings" 'ping -c 1 -W 5 10.0.0.1'

front=/local/domain/1/device/vif/0
keys() { xenstore-ls "$front"; }
bytes() { cat /sys/class/net/vif1.0/statistics/"$1"_bytes; }
flows() { [ "$(bytes "$1")" -gt $((since + 300000)) ]; }
# replace NAME NEXT SIGNAL: waits for traffic, ends NAME by the signal, starts NEXT unless it waits already, and checks that it
# resumes the vif.
replace() {
    for way in rx tx; do
        since=$(bytes $way)
        wait_for 60 "traffic by $1 ($way)" flows $way
    done
    stop "$1" "$3"
    [ -e "/run/$2.started" ] || start "$2" xpv dom0 --xen
    wait_for 10 "$2 resumes the vif" grep -q 'vif{.*resumed' "/out/$2.log"
    echo "check: $2 resumes after $1 ended by $3"
}

mark=/sys/class/net/vif1.0/ifalias
check "the tap's alias names its owner" test "$(cat $mark)" = "xpv /run/xpv 1/0"
carrier() { in_guest one 'cat /sys/class/net/eth0/carrier_changes' | grep -oE '^[0-9]+'; }
before=$(keys) carrier=$(carrier)
# Both sides read slowly while /tmp/slow exists, so that the transfers last.
slowly='while [ -e /tmp/slow ]; do dd bs=16k count=2 2>/dev/null; usleep 100000; done; cat'
touch /tmp/slow
in_guest one "touch /tmp/slow; (ping -i 0.2 10.0.0.1 >/tmp/pings & nc 10.0.0.1 5001 </dev/null | ($slowly) | md5sum >/tmp/fetched) 2>/dev/null &"
(nc 10.0.0.2 5001 </dev/null | (eval "$slowly") | md5sum >/tmp/fetched) &
replace first second KILL
# A second process waits until the first exits.
start third xpv dom0 --xen
wait_for 20 "the third to wait" grep -q 'another process serves this host' /out/third.log
# As by a version that did not mark its taps.
echo >$mark
replace second third KILL
check "the tap's alias names its owner again" test "$(cat $mark)" = "xpv /run/xpv 1/0"
replace third fourth TERM
rm /tmp/slow
check_in_guest one "both sides read fast" 'rm /tmp/slow'

wait_for 60 "the transfer from the guest" test -s /tmp/fetched
check "what the guest sent arrived whole" grep -q "$(cat /run/one.served)" /tmp/fetched
check_in_guest one "what dom0 sent arrived whole" "until [ -s /tmp/fetched ]; do sleep 0.1; done; grep -q $(cat /run/dom0.served) /tmp/fetched"
check_in_guest one "ping continues" 'at=$(wc -l </tmp/pings); until [ $(wc -l </tmp/pings) -gt $((at + 3)) ]; do sleep 0.1; done'
check "the frontend's keys are unchanged" test "$(keys)" = "$before"
check "its device never lost its carrier" test "$(carrier)" = "$carrier"

stop fourth KILL
xl destroy one
check "the tap exists without both" test -e /sys/class/net/vif1.0
start fifth xpv dom0 --xen
wait_for 10 "the next process to remove it" test ! -e /sys/class/net/vif1.0
wait_for 10 "and its response logs" sh -c '[ -z "$(ls /run/xpv/inflight)" ]'
check "the backend runs" running fifth
