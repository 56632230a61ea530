# Linux's selftests bridge_vlan_unaware.sh and bridge_vlan_aware.sh against a bridge of xpv.
# needs: xpv
# packages: selftests
# timeout: 600
# only: when named
. /lib/selftest/run.sh
left_out extern_learn '*' "entries of a hardware switch's driver or a routing daemon, neither of which there is"
selftest bridge_vlan_unaware
selftest bridge_vlan_aware
