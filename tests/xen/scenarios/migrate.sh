# A stock guest that writes and is pinged is saved and restored, then migrated to this host: it continues.
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
start_writer one
answers "at first"

check "it is saved" xl save one /tmp/one.save
check "its devices are removed" sh -c '! xenstore-exists /local/domain/0/backend/vbd/1'
check "it is restored" xl restore /tmp/one.save
rm /tmp/one.save
check_writer_continues one "after the restore"
answers "after the restore"

# During a migration to the same host the guest has two domains. `xl migrate` itself is live, which for PV guests needs
# shadow paging, and Debian's Xen has none; these are its steps.
migrate_away() {
    check "it is saved and left paused" xl save -p one /tmp/one.save
    check "it is renamed" xl rename one one--migratedaway
}
migrate_away
check "the new domain is restored, and waits" xl restore -p /tmp/one.save
wait_for 20 "the old disk to be handed over" grep -q 'disk handed over to a newer device' /out/dom0.log
check "the migration fails" xl destroy one
wait_for 20 "the old disk to be served again" grep -q 'disk acquired' /out/dom0.log
check "the old domain continues" sh -c 'xl rename one--migratedaway one && xl unpause one'
check_writer_continues one "after a migration that failed"
answers "after a migration that failed"

migrate_away
check "the new domain is restored, and continues" xl restore /tmp/one.save
check_writer_continues one "after the migration"
check "the old domain is destroyed" xl destroy one--migratedaway
check_writer_continues one "after the old domain was destroyed"
answers "after the migration"
check_written one
check "the backends run" running dom0
