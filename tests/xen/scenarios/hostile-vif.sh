# A hostile network frontend: only its vif is closed, with an error in the log, and a stock guest's vif is served.
# needs: xpv
# guest-programs: hostile-vif
# timeout: 900
. /lib/hostile.sh
modprobe tun
start dom0 xpv dom0 --xen --bridge xenbr0=tap:host0
wait_for 20 "the bridge's tap" ip address add 10.0.0.1/24 dev host0
ip link set host0 up
guest good 'vif=["mac=00:16:3e:00:00:07,bridge=xenbr0,script=nop"]'
check_in_guest good "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
vifs='"mac=00:16:3e:00:00:10,bridge=xenbr0,script=nop","mac=00:16:3e:00:00:11,bridge=xenbr0,script=nop"'
GUEST_EXTRA=xpv.fronts=no guest bad "vif=[$vifs,\"mac=00:16:3e:00:00:12,bridge=xenbr0,script=nop\"]"
# Its attacks are of other kinds: its frames have any address.
for devid in 0 1 2; do
    check "vif $devid may send from any address" xpv network-set --xen bad "$devid" lock=off
done
# Three interfaces grant more than the 1,024 pages that the kernel's module allows by default.
check_in_guest bad "pages may be granted" 'echo 8192 >/sys/module/xen_gntalloc/parameters/limit'

check_others_served() {
    head -c 300000 /dev/urandom >/tmp/sent
    nc -l -p 9000 </tmp/sent &
    sum=$(in_guest good 'until nc 10.0.0.1 9000 >/tmp/got; do sleep 0.1; done; md5sum </tmp/got' | grep -oE '[0-9a-f]{32}')
    check "the other guest receives" test "$(md5sum </tmp/sent | cut -d' ' -f1)" = "$sum"
}

check_others_served
attack bad 'XPV_VIFS=0/1/2 hostile-vif' xen::
destroy_attacker bad
xl destroy good
check "the backend exits with success" stop dom0
