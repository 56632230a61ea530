# Further processes do nothing, whatever their directory, while the first serves a stock guest's disks, one of them read-only; one
# of the same directory takes them over once the first is killed, and no data is lost.
# needs: xpv
# timeout: 240
disk_file 64M
truncate -s 16M /tmp/read-only.img
losetup /dev/loop1 /tmp/read-only.img
start dom0 xpv dom0 --xen
wait_for 30 "the first to serve" grep -q "serving domid" /out/dom0.log
start standby xpv dom0 --xen
wait_for 30 "the second to wait" grep -q 'another process serves this host' /out/standby.log
start elsewhere xpv dom0 --xen --dir /tmp/elsewhere
wait_for 30 "the third to wait" grep -q 'another process serves this host' /out/elsewhere.log
guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=/dev/loop0", "format=raw,vdev=xvdb,access=ro,script=nop,target=/dev/loop1"]'
start_writer one
check_writer_continues one "beside a second process"
check "the read-only disk is connected" in_state /local/domain/0/backend/vbd/1/51728 4
check "the others have done nothing" sh -c "! grep -q 'vbd{' /out/standby.log /out/elsewhere.log"
stop elsewhere
stop dom0 KILL 2>/dev/null
wait_for 30 "the second to serve" grep -q 'the other process has ended' /out/standby.log
check_writer_continues one "with the second process"
check "the read-only disk is connected" in_state /local/domain/0/backend/vbd/1/51728 4
check_written one
