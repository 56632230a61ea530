# What a scenario can say. Every wait has a bound; the first failure ends the scenario with its reason.
# /in holds the scenario and the programs given to the runner; what is written to /out is kept on the host.

# finish WORDS: tells the runner how it went (`ok`, or `FAIL reason`), and stops here.
finish() {
    dmesg >/out/dom0-dmesg.log
    xl dmesg >/out/xen-dmesg.log 2>&1
    xenstore-ls -f >/out/xenstore.log 2>&1
    # To the console itself: standard output may be a `$(...)` at this moment.
    echo "XPV-RESULT $*" >/dev/console
    while :; do sleep 60; done
}

fail() {
    finish "FAIL $*"
}

# check WHAT COMMAND...: the command must succeed.
check() {
    what=$1
    shift
    "$@" || fail "$what: $*"
    echo "check: $what"
}

# wait_for SECONDS WHAT COMMAND...: polls until the command succeeds.
wait_for() {
    bound=$1 what=$2
    shift 2
    deadline=$(($(uptime_s) + bound))
    until "$@" >/dev/null 2>&1; do
        [ "$(uptime_s)" -lt "$deadline" ] || fail "waited $bound s for $what: $*"
        sleep 0.05
    done
}

uptime_s() {
    cut -d. -f1 /proc/uptime
}

# start NAME COMMAND...: a program in the background; its output goes to /out/NAME.log.
start() {
    name=$1
    shift
    "$@" >"/out/$name.log" 2>&1 &
    echo $! >"/run/$name.started"
}

# stop NAME [SIGNAL]: ends what `start` started, and waits for it.
stop() {
    pid=$(cat "/run/$1.started")
    kill -"${2:-TERM}" "$pid"
    wait "$pid"
}

running() {
    kill -0 "$(cat "/run/$1.started")"
}

# guest NAME LINE...: creates a PV guest of Debian's kernel and waits until it takes commands.
# Lines are xl.cfg(5) settings, such as 'disk=["format=raw,vdev=xvda,access=rw,script=plain-block,target=/dev/loop0"]'.
guest() {
    create_guest "$@"
    wait_for 90 "guest $1" grep -q '##ready' "/out/guest-$1.log"
}

# create_guest NAME LINE...: the same without waiting.
create_guest() {
    guest=$1
    shift
    {
        printf 'name="%s"\ntype="pv"\nmemory=160\nvcpus=1\n' "$guest"
        printf 'kernel="/in/vmlinux"\nramdisk="/in/guest.cpio"\n'
        # The last three spare an emulated guest a second or two of work.
        printf 'extra="console=hvc0 loglevel=5 panic=1 rodata=off mitigations=off cryptomgr.notests"\n'
        printf 'on_crash="preserve"\non_reboot="destroy"\n'
        printf '%s\n' "$@"
    } >"/out/$guest.cfg"
    xl create "/out/$guest.cfg" >"/out/$guest-create.log" 2>&1 || fail "xl create $guest: $(grep -m 1 error "/out/$guest-create.log")"
}

# in_guest NAME COMMAND: runs a line in the guest's shell; prints what it prints, returns its status.
# It travels over the guest's console: the guest answers with a line `##rc NUMBER STATUS`.
in_guest() {
    log=/out/guest-$1.log
    commands=$(($(cat "/run/$1.commands" 2>/dev/null || echo 0) + 1))
    echo "$commands" >"/run/$1.commands"
    from=$(($(wc -c <"$log") + 1))
    echo "$commands $2" >"$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty")"
    wait_for "${GUEST_BOUND:-60}" "an answer of $1 to: $2" grep -q "##rc $commands [0-9]" "$log"
    tail -c "+$from" "$log" | tr -d '\r' | sed "/##rc $commands /,\$d"
    return "$(sed -n "s/.*##rc $commands \([0-9]*\).*/\1/p" "$log" | tail -n 1)"
}

# check_in_guest NAME WHAT COMMAND: the command must succeed in the guest.
check_in_guest() {
    answer=$(in_guest "$1" "$3") || fail "$2, in $1: $3: $(echo "$answer" | tail -n 1)"
    echo "check: $2"
}

# state PATH: the xenbus state below a xenstore path, 0 when there is none.
state() {
    xenstore-read "$1/state" 2>/dev/null || echo 0
}

# in_state PATH NUMBER...: whether the state is one of these.
in_state() {
    case " ${*#"$1"} " in *" $(state "$1") "*) return 0 ;; esac
    return 1
}

# loop_disk: a private copy of the test disk as a loop device; prints its path.
loop_disk() {
    modprobe loop
    copy=$(mktemp /tmp/disk.XXXXXX)
    cp /in/disk.img "$copy"
    device=$(losetup -f) && losetup "$device" "$copy" || fail "no loop device"
    echo "$device"
}

# bridge_up NAME ADDRESS/BITS: a Linux bridge in dom0 with an address.
bridge_up() {
    modprobe bridge
    brctl addbr "$1" && ip address add "$2" dev "$1" && ip link set "$1" up
}
