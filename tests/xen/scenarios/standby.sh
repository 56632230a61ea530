# A second process does nothing, whatever its directory, while the first serves a stock guest's disks, one of them read-only;
# it takes them over once the first is killed, and no data is lost.
# needs: xpv
# timeout: 240
disk_file 64M
truncate -s 16M /tmp/read-only.img
losetup /dev/loop1 /tmp/read-only.img
start dom0 xpv dom0 --xen
start standby xpv dom0 --xen --dir /tmp/standby
wait_for 10 "the second to wait" grep -q 'another process serves this host' /out/standby.log
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0", "format=raw,vdev=xvdb,access=ro,script=nop,target=/dev/loop1"]'
start_writer one
check_writer_continues one "beside a second process"
check "the read-only disk is connected" in_state /local/domain/0/backend/vbd/1/51728 4
check "the second has done nothing" sh -c "! grep -q 'vbd{' /out/standby.log"
stop dom0 KILL 2>/dev/null
wait_for 10 "the second to serve" grep -q 'the other process has ended' /out/standby.log
check_writer_continues one "with the second process"
check "the read-only disk is connected" in_state /local/domain/0/backend/vbd/1/51728 4
check_written one
