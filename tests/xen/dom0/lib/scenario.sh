# Functions for scenarios. Every wait has a timeout; the first failure ends the scenario and reports its reason.
# /in holds the scenario and the programs given to the runner; files written to /out are kept on the host.

# The directory of the guests' console logs, written by xenconsoled.
CONSOLES=/out

# finish RESULT: reports `ok` or `FAIL reason` to the runner; does not return. It is no success where a kernel found itself damaged.
finish() {
    dmesg >/out/dom0-dmesg.log
    damage=$(grep -hE "BUG: |WARNING: CPU|Oops|general protection" /out/dom0-dmesg.log /out/guest-*.log 2>/dev/null | grep -v "soft lockup")
    [ "$1" != ok ] || [ -z "$damage" ] || set -- FAIL "a kernel says: $(echo "$damage" | head -n 1)"
    xl dmesg >/out/xen-dmesg.log 2>&1
    xenstore-ls -f >/out/xenstore.log 2>&1
    # To the console itself: standard output may be captured by `$(...)`.
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

# How many times longer all may take than on a machine that is not busy.
PATIENCE=3

# wait_for SECONDS WHAT COMMAND...: polls until the command succeeds, for at most so long on a machine that is not busy.
wait_for() {
    bound=$((PATIENCE * $1)) what=$2
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

# start NAME COMMAND...: starts a program in the background; its output goes to /out/NAME.log.
start() {
    name=$1
    shift
    "$@" >"/out/$name.log" 2>&1 &
    echo $! >"/run/$name.started"
}

# stop NAME [SIGNAL]: sends a signal to a program started by `start`, and waits until it exits.
stop() {
    pid=$(cat "/run/$1.started")
    kill -"${2:-TERM}" "$pid"
    wait "$pid"
}

# running NAME: whether a program started by `start` runs.
running() {
    kill -0 "$(cat "/run/$1.started")"
}

# guest NAME LINE...: creates a PV guest with Debian's kernel and waits until it accepts commands.
# Lines are xl.cfg(5) settings, such as 'disk=["format=raw,vdev=xvda,access=rw,script=plain-block,target=/dev/loop0"]'.
# $GUEST_EXTRA is added to its kernel's command line: with `xpv.fronts=no` it loads no frontends, and with
# `xpv.root=/dev/xvda` it goes on from that disk (guest/init).
guest() {
    create_guest "$@"
    wait_for 150 "guest $1" grep -q '##ready' "$CONSOLES/guest-$1.log"
}

# create_guest NAME LINE...: creates a guest like `guest`, without waiting.
create_guest() {
    guest=$1
    shift
    {
        printf 'name="%s"\ntype="pv"\nmemory=160\nvcpus=1\n' "$guest"
        printf 'kernel="/in/vmlinux"\nramdisk="/in/guest.cpio"\n'
        # The last three options save an emulated guest a second or two.
        printf 'extra="console=hvc0 loglevel=5 panic=1 rodata=off mitigations=off cryptomgr.notests %s"\n' "${GUEST_EXTRA:-}"
        printf 'on_crash="preserve"\non_reboot="destroy"\n'
        printf '%s\n' "$@"
    } >"/out/$guest.cfg"
    xl create "/out/$guest.cfg" >"/out/$guest-create.log" 2>&1 || fail "xl create $guest: $(grep -m 1 error "/out/$guest-create.log")"
}

# guest_ring: creates a guest with a disk that has no backend. The function writes the backend's state InitWait, upon which
# the guest's blkfront publishes its ring, a granted page. Sets `ring` to DOMID/REFERENCE.
guest_ring() {
    create_guest one 'disk=["format=raw,vdev=xvda,access=rw,script=nop,target=anything"]' &
    back=/local/domain/0/backend/vbd/1/51712 front=/local/domain/1/device/vbd/51712
    wait_for 60 "the backend's nodes" xenstore-exists "$back/state"
    xenstore-write "$back/state" 2
    wait_for 60 "the guest's ring" in_state "$front" 3
    ring=1/$(xenstore-read "$front/ring-ref")
}

# in_guest NAME COMMAND: runs a line in the guest's shell; prints its output and returns its status.
# The line is sent over the guest's console; at its end the guest prints `##rc NUMBER STATUS`.
in_guest() {
    send_to_guest "$1" "$2"
    wait_for "${GUEST_BOUND:-60}" "$1 to finish: $2" guest_finished "$1"
    guest_output "$1"
}

# send_to_guest NAME COMMAND: starts a line in the guest's shell without waiting. `guest_finished NAME` succeeds once it has
# ended; `guest_output NAME` then prints its output and returns its status.
send_to_guest() {
    commands=$(($(cat "/run/$1.commands" 2>/dev/null || echo 0) + 1))
    echo "$commands" >"/run/$1.commands"
    echo $(($(wc -c <"$CONSOLES/guest-$1.log") + 1)) >"/run/$1.from"
    echo "$commands $2" >"$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty")"
}

guest_finished() {
    grep -q "##rc $(cat "/run/$1.commands") [0-9]" "$CONSOLES/guest-$1.log"
}

guest_output() {
    guest_finished "$1" || return 255
    log=$CONSOLES/guest-$1.log commands=$(cat "/run/$1.commands")
    tail -c "+$(cat "/run/$1.from")" "$log" | tr -d '\r' | sed "/##rc $commands /,\$d"
    return "$(sed -n "s/.*##rc $commands \([0-9]*\).*/\1/p" "$log" | tail -n 1)"
}

# check_in_guest NAME WHAT COMMAND: the command must succeed in the guest.
check_in_guest() {
    output=$(in_guest "$1" "$3") || fail "$2, in $1: $3: $(echo "$output" | tail -n 1)"
    echo "check: $2"
}

# wait_in_guest NAME WHAT COMMAND: polls in the guest until the command succeeds.
wait_in_guest() {
    check_in_guest "$1" "$2" "timeout $((PATIENCE * 30)) sh -c 'until $3; do sleep 0.05; done'"
}

# at DOMAIN COMMAND: runs a line in a guest or in `dom0`; prints its output and returns its status.
at() {
    case $1 in
        dom0) sh -c "$2" ;;
        *) in_guest "$1" "$2" ;;
    esac
}

# serve DOMAIN MIB: starts a TCP server at port 5001 there, which sends a file of random bytes to each client.
serve() {
    file=$(at "$1" "dd if=/dev/urandom of=/tmp/served bs=1M count=$2 2>/dev/null; md5sum </tmp/served; (nc -ll -p 5001 -e cat /tmp/served >/dev/null 2>&1 &)")
    echo "$file" | grep -oE '[0-9a-f]{32}' >"/run/$1.served" || fail "$1 serves no file: $file"
}

# check_fetch DOMAIN FROM ADDRESS [HOW]: the file that FROM serves at that address is received unchanged.
check_fetch() {
    received=$(at "$1" "nc $3 5001 </dev/null | md5sum" | grep -oE '[0-9a-f]{32}')
    check "TCP from $2 ($3) to $1${4:+, $4}" test "$received" = "$(cat "/run/$2.served")"
}

# bytes_a_frame DOMAIN rx|tx INTERFACE COMMAND...: prints the mean length of the frames that pass an interface there while
# the command runs. More than the mtu shows that frames are not segmented.
bytes_a_frame() {
    counters="cd /sys/class/net/$3/statistics && cat $2_bytes $2_packets" domain=$1
    shift 3
    before=$(at "$domain" "$counters" | grep -E '^[0-9]+$' | tr '\n' ' ')
    "$@" >&2
    echo "$before" $(at "$domain" "$counters" | grep -E '^[0-9]+$') | awk '{ print int(($3 - $1) / ($4 - $2 + 0.001)) }'
}

# state PATH: prints the xenbus state below a xenstore path, 0 if there is none.
state() {
    xenstore-read "$1/state" 2>/dev/null || echo 0
}

# in_state PATH NUMBER...: whether the state is one of these numbers.
in_state() {
    case " ${*#"$1"} " in *" $(state "$1") "*) return 0 ;; esac
    return 1
}

# loop_disk: makes a loop device of a copy of the test disk; prints its path.
loop_disk() {
    modprobe loop
    copy=$(mktemp /tmp/disk.XXXXXX)
    cp /in/disk.img "$copy"
    device=$(losetup -f) && losetup "$device" "$copy" || fail "no loop device"
    echo "$device"
}

# bridge_up NAME ADDRESS/BITS: makes a Linux bridge with an address in dom0.
bridge_up() {
    modprobe bridge
    brctl addbr "$1" && ip address add "$2" dev "$1" && ip link set "$1" up
}

# disk_file BYTES: makes the block device /dev/loop0 of a new file; unlike files in dom0's tmpfs it supports O_DIRECT.
disk_file() {
    modprobe loop
    truncate -s "$1" /tmp/disk && losetup /dev/loop0 /tmp/disk || fail "no loop device"
}

# start_writer NAME: makes a file system on the guest's xvda, mounts it, and starts a writer in the background: each round
# writes 4 MiB, flushes them and records their checksum.
start_writer() {
    check_in_guest "$1" "a file system is made" \
        'mke2fs /dev/xvda >/dev/null && mount -t ext4 /dev/xvda /mnt && echo 0 >/tmp/rounds'
    round='i=$(($(cat /tmp/rounds) + 1)); f=f$((i % 4)); dd if=/dev/urandom of=/mnt/$f bs=64k count=64 conv=fsync 2>/dev/null || break'
    sums='md5sum /mnt/$f >/tmp/sum-$f; echo $i >/tmp/next; mv /tmp/next /tmp/rounds'
    check_in_guest "$1" "a writer runs" "(while [ ! -e /tmp/enough ]; do $round; $sums; done; touch /tmp/over) >/dev/null 2>&1 &"
}

# check_writer_continues NAME WHEN: waits until the guest's writer has completed two more rounds.
check_writer_continues() {
    rounds=$(rounds_of "$1")
    wait_for 60 "the writer of $1 to continue $2" rounds_above "$1" $((rounds + 1))
    echo "check: the writer continues $2"
}

rounds_of() {
    in_guest "$1" 'cat /tmp/rounds' | grep -oE '^[0-9]+$'
}

rounds_above() {
    [ "$(rounds_of "$1")" -gt "$2" ]
}

# check_written NAME: stops the writer, and checks every file's checksum in the guest, and the disk's against dom0's image.
check_written() {
    check_in_guest "$1" "the writer ends" 'touch /tmp/enough; until [ -e /tmp/over ]; do usleep 100000; done'
    check_in_guest "$1" "every file is as it was written" \
        'umount /mnt && mount -t ext4 /dev/xvda /mnt && cat /tmp/sum* | md5sum -c'
    check_in_guest "$1" "no error was seen" '! dmesg | grep -iE "I/O error|xvda.*error"'
    sum=$(in_guest "$1" 'umount /mnt; md5sum </dev/xvda' | grep -oE '[0-9a-f]{32}')
    check "the image holds the same" test "$(md5sum </dev/loop0 | cut -d' ' -f1)" = "$sum"
}
