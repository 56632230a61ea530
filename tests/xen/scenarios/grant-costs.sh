# What grants cost, in instructions of dom0 and Xen: mapped, copied, or mapped for good.
# needs: grant-costs
# timeout: 400
# only: when named
# qemu: -smp 1 -icount shift=0,sleep=off
create_guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=anything"]' &
front=/local/domain/1/device/vbd/51712
back=/local/domain/0/backend/vbd/1/51712

# We play the back end's first step; the guest's blkfront answers with its ring, a page that it granted.
wait_for 60 "the back end's nodes" xenstore-exists "$back/state"
xenstore-write "$back/state" 2
wait_for 60 "the guest's ring" in_state "$front" 3
modprobe brd rd_nr=1 rd_size=16384

{
    echo "pages of a guest's"
    XPV_GUEST_GRANT="1/$(xenstore-read "$front/ring-ref")" XPV_BLOCK_DEVICE=/dev/ram0 grant-costs
    echo "pages of dom0's own"
    XPV_BLOCK_DEVICE=/dev/ram0 grant-costs
} >/out/figures 2>&1
check "all was measured" test "$(grep -c '^poll of' /out/figures)" = 2
