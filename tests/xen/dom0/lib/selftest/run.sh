# Runs Linux's selftests of net/forwarding against bridges of xpv, in dom0. They are fetched with `# packages: selftests`.

# left_out FUNCTION TITLE REASON: what the function tests by this title, a pattern of the shell (* for all of it, also where it tests nothing
# as it finds something missing), does not hold here, for that reason. Where it does hold the scenario fails: it is left out no more.
left_out() {
    printf '%s|%s|%s\n' "$1" "$2" "$3" >>/run/left-out
}

# selftest SCRIPT: runs one, and fails unless each of its functions holds, but for what is left out.
selftest() {
    log=/out/$1.log
    (
        cd /selftests/tools/testing/selftests/net/forwarding || exit
        # An ageing time of 30 s, in hundredths: with the 10 s of the scripts a station is forgotten before a busy emulated machine has looked.
        PATH=/lib/selftest:/sbin:$PATH PING6=ping WAIT_TIME=${WAIT_TIME:-2} LOW_AGEING_TIME=3000 bash "./$1.sh"
    ) >"$log" 2>&1
    echo "selftest $1 exited with $?" >>"$log"
    judge "$log" >"/run/$1.verdict" || fail "$1: $(grep -m 1 '^BAD' "/run/$1.verdict")"
    sed "s/^/$1: /" "/run/$1.verdict"
    cat "/run/$1.verdict" >>/out/verdicts
}

# judge LOG: a line for each test; its status is not 0 where one of them starts with BAD.
judge() {
    touch /run/left-out
    bash -c '
        declare -A used
        mapfile -t left </run/left-out
        function= tested=0 bad=0
        verdict() { # TITLE RESULT
            local each of title reason
            tested=1
            for each in "${left[@]}"; do
                IFS="|" read -r of title reason <<<"$each"
                [[ $of == "$function" && $1 == $title ]] || continue
                [[ $2 == OK ]] && echo "BAD $function: $1: it holds, and is left out: $reason" && bad=1 && return
                echo "left out $function: $1: $reason"
                return
            done
            [[ $2 == OK ]] && echo "ok $function: $1" && return
            echo "BAD $function: $1: $2"
            bad=1
        }
        finish() { [[ -z $function || $tested == 1 ]] || verdict "" "nothing was tested"; }
        while IFS= read -r line; do
            case $line in
                "FUNCTION: "*) finish; function=${line#FUNCTION: } tested=0 seen=1 ;;
                "TEST: "*)
                    result=${line##*[} result=${result%]} result=${result// /}
                    title=${line#TEST: } title=${title%[*} title=${title%"${title##*[! ]}"}
                    verdict "$title" "$result"
                    ;;
            esac
        done
        finish
        [[ $seen ]] || { echo "BAD no function ran"; bad=1; }
        exit $bad
    ' <"$1"
}

for module in vrf 8021q veth tun sch_ingress cls_flower act_gact; do
    modprobe "$module" || fail "no module $module"
done
