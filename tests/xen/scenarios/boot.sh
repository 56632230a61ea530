# Xen boots, and xl lists dom0.
check "xl lists dom0" grep -q '^Domain-0 ' <<-EOF
$(xl list)
EOF
for node in evtchn gntdev gntalloc xenbus; do
    check "/dev/xen/$node" test -c "/dev/xen/$node"
done
