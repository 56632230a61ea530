# Linux's selftests bridge_sticky_fdb.sh and bridge_fdb_learning_limit.sh against a bridge of xpv.
# needs: xpv
# packages: selftests
# timeout: 600
# only: when named
. /lib/selftest/run.sh
for function in check_accounting check_limit; do
    left_out $function '*type extern_learn' "entries of a hardware switch's driver or a routing daemon, neither of which there is"
    left_out $function '*type local' "a port's own address is a guest's: the bridge has no address, and the host's interface is not the port"
done
selftest bridge_sticky_fdb
# What a host of the test sends by itself, at first, would be learned between a flush and an entry, or count.
echo 0 >/proc/sys/net/ipv6/conf/default/router_solicitations
WAIT_TIME=6 selftest bridge_fdb_learning_limit
