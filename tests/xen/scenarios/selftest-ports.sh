# Linux's selftests bridge_port_isolation.sh and bridge_locked_port.sh against a bridge of xpv.
# needs: xpv
# packages: selftests
# timeout: 600
# only: when named
. /lib/selftest/run.sh
for function in locked_port_mab locked_port_mab_roam locked_port_mab_config locked_port_mab_flush locked_port_mab_redirect; do
    left_out $function '*' "there is no flag mab, which marks stations for an authenticator: dom0 has none"
done
selftest bridge_port_isolation
selftest bridge_locked_port
