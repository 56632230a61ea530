# Our network backend is killed and another takes its place, twice, and once more in order: a stock guest's TCP and ping go on.
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
# succeed NAME NEXT SIGNAL: once traffic flows, NAME ends by the signal and NEXT takes its place, or had been waiting for it.
succeed() {
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
check "the tap says whose it is" test "$(cat $mark)" = "xpv /run/xpv 1/0"
carrier() { in_guest one 'cat /sys/class/net/eth0/carrier_changes' | grep -oE '^[0-9]+'; }
before=$(keys) carrier=$(carrier)
# Both sides read slowly while /tmp/slow is there, so that the transfers last.
slowly='while [ -e /tmp/slow ]; do dd bs=16k count=2 2>/dev/null; usleep 100000; done; cat'
touch /tmp/slow
in_guest one "touch /tmp/slow; (ping -i 0.2 10.0.0.1 >/tmp/pings & nc 10.0.0.1 5001 </dev/null | ($slowly) | md5sum >/tmp/fetched) 2>/dev/null &"
(nc 10.0.0.2 5001 </dev/null | (eval "$slowly") | md5sum >/tmp/fetched) &
succeed first second KILL
# One that is started beside it waits for its turn.
start third xpv dom0 --xen
wait_for 20 "a word of the one beside" grep -q 'waits: ' /out/third.log
# As a version left it that did not mark its taps.
echo >$mark
succeed second third KILL
check "the tap says again whose it is" test "$(cat $mark)" = "xpv /run/xpv 1/0"
succeed third fourth TERM
rm /tmp/slow
check_in_guest one "the rest comes quickly" 'rm /tmp/slow'

wait_for 60 "the transfer from the guest" test -s /tmp/fetched
check "what the guest sent arrived whole" grep -q "$(cat /run/one.served)" /tmp/fetched
check_in_guest one "what dom0 sent arrived whole" "until [ -s /tmp/fetched ]; do sleep 0.1; done; grep -q $(cat /run/dom0.served) /tmp/fetched"
check_in_guest one "ping goes on" 'at=$(wc -l </tmp/pings); until [ $(wc -l </tmp/pings) -gt $((at + 3)) ]; do sleep 0.1; done'
check "the frontend has seen nothing" test "$(keys)" = "$before"
check "its device never lost its carrier" test "$(carrier)" = "$carrier"

stop fourth KILL
xl destroy one
check "the tap outlives both" test -e /sys/class/net/vif1.0
start fifth xpv dom0 --xen
wait_for 10 "until the next process removes it" test ! -e /sys/class/net/vif1.0
check "and what was kept of its rings" test -z "$(ls /run/xpv/inflight)"
check "the backend lives" running fifth
