# A stock guest that writes and is pinged is saved and restored, then moved to another domain of this host: it goes on.
# needs: xpv
# timeout: 300
disk_file 64M
modprobe tun
bridge_up br0 10.0.0.1/24
start dom0 xpv dom0 --xen
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0"]' \
    'vif=["mac=00:16:3e:00:00:07,bridge=br0,script=nop"]'
check_in_guest one "the interface comes up" 'ip address add 10.0.0.2/24 dev eth0 && ip link set eth0 up'
answers() { check "the guest answers pings $1" ping -c 2 -W 20 10.0.0.2; }
write_on one
answers "at first"

check "it is saved" xl save one /tmp/one.save
check "its devices are gone" sh -c '! xenstore-exists /local/domain/0/backend/vbd/1'
check "it is restored" xl restore /tmp/one.save
rm /tmp/one.save
writes_on one "after the restore"
answers "after the restore"

# A migration to the host that it is on has two domains of one machine for a while. `xl migrate` itself is live, and for
# that Debian's Xen is built without what PV guests need (shadow paging); these are its steps.
leave() {
    check "it is saved and left paused" xl save -p one /tmp/one.save
    check "it is renamed" xl rename one one--migratedaway
}
leave
check "the other arrives, and waits" xl restore -p /tmp/one.save
wait_for 20 "the old disk to give way" grep -q 'disk handed over to a younger device' /out/dom0.log
check "the migration fails" xl destroy one
wait_for 20 "the old disk to be served again" grep -q 'disk acquired' /out/dom0.log
check "the old one goes on" sh -c 'xl rename one--migratedaway one && xl unpause one'
writes_on one "after a migration that failed"
answers "after a migration that failed"

leave
check "the other arrives, and goes on" xl restore /tmp/one.save
writes_on one "after the migration"
check "the old one is destroyed" xl destroy one--migratedaway
writes_on one "when the old one is gone"
answers "after the migration"
check_written one
check "the backends live" running dom0
