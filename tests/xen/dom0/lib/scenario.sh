# What a scenario can say. Every wait has a bound; the first failure ends the scenario with its reason.
# /in holds the scenario and the programs given to the runner; what is written to /out is kept on the host.

# Where xenconsoled writes what guests say.
CONSOLES=/out

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
# $GUEST_EXTRA are words for its kernel's command line: with `xpv.fronts=no` it loads no frontends (guest/init).
guest() {
    create_guest "$@"
    wait_for 150 "guest $1" grep -q '##ready' "$CONSOLES/guest-$1.log"
}

# create_guest NAME LINE...: the same without waiting.
create_guest() {
    guest=$1
    shift
    {
        printf 'name="%s"\ntype="pv"\nmemory=160\nvcpus=1\n' "$guest"
        printf 'kernel="/in/vmlinux"\nramdisk="/in/guest.cpio"\n'
        # The last three spare an emulated guest a second or two of work.
        printf 'extra="console=hvc0 loglevel=5 panic=1 rodata=off mitigations=off cryptomgr.notests %s"\n' "${GUEST_EXTRA:-}"
        printf 'on_crash="preserve"\non_reboot="destroy"\n'
        printf '%s\n' "$@"
    } >"/out/$guest.cfg"
    xl create "/out/$guest.cfg" >"/out/$guest-create.log" 2>&1 || fail "xl create $guest: $(grep -m 1 error "/out/$guest-create.log")"
}

# guest_ring: a guest whose disk nobody serves: we play the backend's first step, and its blkfront answers with a ring, a
# page that it granted. Sets `ring` to DOMID/REFERENCE.
guest_ring() {
    create_guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=anything"]' &
    back=/local/domain/0/backend/vbd/1/51712 front=/local/domain/1/device/vbd/51712
    wait_for 60 "the backend's nodes" xenstore-exists "$back/state"
    xenstore-write "$back/state" 2
    wait_for 60 "the guest's ring" in_state "$front" 3
    ring=1/$(xenstore-read "$front/ring-ref")
}

# in_guest NAME COMMAND: runs a line in the guest's shell; prints what it prints, returns its status.
# It travels over the guest's console: the guest answers with a line `##rc NUMBER STATUS`.
in_guest() {
    tell_guest "$1" "$2"
    wait_for "${GUEST_BOUND:-60}" "an answer of $1 to: $2" guest_answered "$1"
    told_by_guest "$1"
}

# tell_guest NAME COMMAND: has the guest begin, and does not wait: `guest_answered NAME` says when it is done, and
# `told_by_guest NAME` what it printed and how it ended.
tell_guest() {
    commands=$(($(cat "/run/$1.commands" 2>/dev/null || echo 0) + 1))
    echo "$commands" >"/run/$1.commands"
    echo $(($(wc -c <"$CONSOLES/guest-$1.log") + 1)) >"/run/$1.from"
    echo "$commands $2" >"$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty")"
}

guest_answered() {
    grep -q "##rc $(cat "/run/$1.commands") [0-9]" "$CONSOLES/guest-$1.log"
}

told_by_guest() {
    guest_answered "$1" || return 255
    log=$CONSOLES/guest-$1.log commands=$(cat "/run/$1.commands")
    tail -c "+$(cat "/run/$1.from")" "$log" | tr -d '\r' | sed "/##rc $commands /,\$d"
    return "$(sed -n "s/.*##rc $commands \([0-9]*\).*/\1/p" "$log" | tail -n 1)"
}

# check_in_guest NAME WHAT COMMAND: the command must succeed in the guest.
check_in_guest() {
    answer=$(in_guest "$1" "$3") || fail "$2, in $1: $3: $(echo "$answer" | tail -n 1)"
    echo "check: $2"
}

# wait_in_guest NAME WHAT COMMAND: polls in the guest until the command succeeds.
wait_in_guest() {
    check_in_guest "$1" "$2" "timeout 30 sh -c 'until $3; do sleep 0.05; done'"
}

# at PLACE COMMAND: runs a line in a guest or, if that is `dom0`, here; prints what it prints, returns its status.
at() {
    case $1 in
        dom0) sh -c "$2" ;;
        *) in_guest "$1" "$2" ;;
    esac
}

# serve PLACE MIB: there, every caller at TCP port 5001 is sent a file of random bytes.
serve() {
    file=$(at "$1" "dd if=/dev/urandom of=/tmp/served bs=1M count=$2 2>/dev/null; md5sum </tmp/served; (nc -ll -p 5001 -e cat /tmp/served >/dev/null 2>&1 &)")
    echo "$file" | grep -oE '[0-9a-f]{32}' >"/run/$1.served" || fail "$1 serves no file: $file"
}

# check_fetch PLACE FROM ADDRESS [HOW]: the file that FROM serves at that address arrives whole.
check_fetch() {
    got=$(at "$1" "nc $3 5001 </dev/null | md5sum" | grep -oE '[0-9a-f]{32}')
    check "TCP from $2 ($3) to $1${4:+, $4}" test "$got" = "$(cat "/run/$2.served")"
}

# bytes_a_frame PLACE rx|tx INTERFACE COMMAND...: mean length of what crosses an interface there while the command runs.
# More than the mtu proves that segmentation is left to the receiver.
bytes_a_frame() {
    counters="cd /sys/class/net/$3/statistics && cat $2_bytes $2_packets" place=$1
    shift 3
    before=$(at "$place" "$counters" | grep -E '^[0-9]+$' | tr '\n' ' ')
    "$@" >&2
    echo "$before" $(at "$place" "$counters" | grep -E '^[0-9]+$') | awk '{ print int(($3 - $1) / ($4 - $2 + 0.001)) }'
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

# disk_file BYTES: a file that loop0 makes a block device, /dev/loop0, which takes O_DIRECT; dom0's tmpfs does not.
disk_file() {
    modprobe loop
    truncate -s "$1" /tmp/disk && losetup /dev/loop0 /tmp/disk || fail "no loop device"
}

# write_on NAME: the guest makes a file system on its xvda, mounts it, and goes on writing: each round writes 4 MiB,
# flushes them and notes their sum.
write_on() {
    check_in_guest "$1" "a file system is made" \
        'mke2fs /dev/xvda >/dev/null && mount -t ext4 /dev/xvda /mnt && echo 0 >/tmp/rounds'
    round='i=$(($(cat /tmp/rounds) + 1)); f=f$((i % 4)); dd if=/dev/urandom of=/mnt/$f bs=64k count=64 conv=fsync 2>/dev/null || break'
    sums='md5sum /mnt/$f >/tmp/sum-$f; echo $i >/tmp/next; mv /tmp/next /tmp/rounds'
    check_in_guest "$1" "a writer runs" "(while [ ! -e /tmp/enough ]; do $round; $sums; done; touch /tmp/over) >/dev/null 2>&1 &"
}

# writes_on NAME WHAT: waits until the guest has written two more whole rounds.
writes_on() {
    rounds=$(rounds_of "$1")
    wait_for 60 "$1 to write on $2" beyond "$1" $((rounds + 1))
    echo "check: it writes on $2"
}

rounds_of() {
    in_guest "$1" 'cat /tmp/rounds' | grep -oE '^[0-9]+$'
}

beyond() {
    [ "$(rounds_of "$1")" -gt "$2" ]
}

# check_written NAME: the writer ends, and every file is as its sum says, in the guest and in dom0's image.
check_written() {
    check_in_guest "$1" "the writer ends" 'touch /tmp/enough; until [ -e /tmp/over ]; do usleep 100000; done'
    check_in_guest "$1" "every file is as it was written" \
        'umount /mnt && mount -t ext4 /dev/xvda /mnt && cat /tmp/sum* | md5sum -c'
    check_in_guest "$1" "no error was seen" '! dmesg | grep -iE "I/O error|xvda.*error"'
    sum=$(in_guest "$1" 'umount /mnt; md5sum </dev/xvda' | grep -oE '[0-9a-f]{32}')
    check "the image holds the same" test "$(md5sum </dev/loop0 | cut -d' ' -f1)" = "$sum"
}
