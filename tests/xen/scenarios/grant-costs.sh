# The cost of grants in instructions of dom0 and Xen: mapped, copied, or mapped persistently.
# needs: grant-costs
# timeout: 400
# only: when named
# qemu: -smp 1 -icount shift=0,sleep=off
guest_ring
modprobe brd rd_nr=1 rd_size=16384

{
    echo "pages of a guest's"
    XPV_GUEST_GRANT=$ring XPV_BLOCK_DEVICE=/dev/ram0 grant-costs
    echo "pages of dom0's own"
    XPV_BLOCK_DEVICE=/dev/ram0 grant-costs
} >/out/figures 2>&1
check "every case was measured" test "$(grep -c '^poll of' /out/figures)" = 2
