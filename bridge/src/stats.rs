//! A port's counters: written by the thread that owns the port, read by any thread.

use event_loop::Counter;

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum DropReason {
    /// Shorter than an Ethernet header (counted at the port it came from).
    Runt,
    /// From a group address or from zero, which no station has (at the port it came from).
    BadSource,
    /// For a reserved 802.1D group address, which bridges do not forward (at the port it came from).
    Reserved,
    /// From an address that the port is locked from using, or by or to a port that is disabled (at that port).
    Lock,
    /// From an IP address that the port's `lock=ip` does not allow (at the port it came from), as the next ones.
    LockIp,
    /// ARP of another's addresses.
    LockArp,
    /// Neighbour discovery of another's addresses.
    LockNdp,
    /// From a DHCP server.
    LockDhcp,
    /// From an IPv6 router: an advertisement or a redirection.
    LockRouter,
    /// Neither ARP nor IP, or behind more than one VLAN tag.
    LockType,
    /// Headers that are cut off, contradict themselves or do not end in the first 124 bytes or the first fragment.
    LockHeaders,
    /// In a VLAN that the port is not in, with a tag from a port that takes none, or with a second tag behind one of VLAN 0 (at
    /// the port it came from).
    Vlan,
    /// From the address of another port's station (at the port it came from).
    Sticky,
    /// From a station that no entry of the forwarding database says is at the port, which has the flag `locked` (at that port).
    Locked,
    /// Of the spanning tree protocol, from a port with the flag `guard` (at that port).
    Guard,
    /// To be cut into segments shorter than the port it came from may ask for (there).
    SmallSegments,
    /// Beyond the port's storm limit for broadcasts (at the port it came from).
    Broadcast,
    /// Beyond the port's storm limit for multicasts (at the port it came from).
    Multicast,
    /// Beyond the port's storm limit for stations of which no port is known (at the port it came from).
    UnknownUnicast,
    /// Longer than the mtu of the port it was to be sent by.
    TooLong,
    /// Headers that do not match the offload metadata.
    Malformed,
    /// The port's queue was full, or its peer posted no buffers.
    NoRoom,
    /// The frames that waited for the port's receiving rate were too many.
    RateIn,
    /// The interface behind the port is down.
    Down,
    /// No receive buffer was free.
    NoBuffer,
}

impl DropReason {
    /// Every reason, in the order of their counters.
    pub const ALL: [DropReason; 25] = [
        DropReason::Runt,
        DropReason::BadSource,
        DropReason::Reserved,
        DropReason::Lock,
        DropReason::LockIp,
        DropReason::LockArp,
        DropReason::LockNdp,
        DropReason::LockDhcp,
        DropReason::LockRouter,
        DropReason::LockType,
        DropReason::LockHeaders,
        DropReason::Vlan,
        DropReason::Sticky,
        DropReason::Locked,
        DropReason::Guard,
        DropReason::SmallSegments,
        DropReason::Broadcast,
        DropReason::Multicast,
        DropReason::UnknownUnicast,
        DropReason::TooLong,
        DropReason::Malformed,
        DropReason::NoRoom,
        DropReason::RateIn,
        DropReason::Down,
        DropReason::NoBuffer,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Runt => "runt",
            DropReason::BadSource => "bad_source",
            DropReason::Reserved => "reserved",
            DropReason::Lock => "lock",
            DropReason::LockIp => "lock_ip",
            DropReason::LockArp => "lock_arp",
            DropReason::LockNdp => "lock_ndp",
            DropReason::LockDhcp => "lock_dhcp",
            DropReason::LockRouter => "lock_router",
            DropReason::LockType => "lock_type",
            DropReason::LockHeaders => "lock_headers",
            DropReason::Vlan => "vlan",
            DropReason::Sticky => "sticky",
            DropReason::Locked => "locked",
            DropReason::Guard => "guard",
            DropReason::SmallSegments => "small_segments",
            DropReason::Broadcast => "broadcast",
            DropReason::Multicast => "multicast",
            DropReason::UnknownUnicast => "unknown_unicast",
            DropReason::TooLong => "too_long",
            DropReason::Malformed => "malformed",
            DropReason::NoRoom => "no_room",
            DropReason::RateIn => "rate_in",
            DropReason::Down => "down",
            DropReason::NoBuffer => "no_buffer",
        }
    }
}

/// Live counters, which one thread at a time writes. `rx` is from the port into the switch, `tx` from the switch out of the
/// port.
#[derive(Debug, Default)]
pub struct Stats {
    rx_frames: Counter,
    rx_bytes: Counter,
    tx_frames: Counter,
    tx_bytes: Counter,
    drops: [Counter; DropReason::ALL.len()],
    mac_moves: Counter,
    missed_wakeups: Counter,
}

impl Stats {
    /// Counts received frames; meant to be called once a batch.
    pub fn rx(&self, frames: u64, bytes: u64) {
        self.rx_frames.add(frames);
        self.rx_bytes.add(bytes);
    }

    /// Counts sent frames; meant to be called once a batch.
    pub fn tx(&self, frames: u64, bytes: u64) {
        self.tx_frames.add(frames);
        self.tx_bytes.add(bytes);
    }

    /// Counts dropped frames.
    pub fn lost(&self, reason: DropReason, frames: u64) {
        if frames != 0 {
            self.drops[reason as usize].add(frames);
        }
    }

    /// Counts stations that were seen at this port, and at another one before.
    pub(crate) fn moved(&self, stations: u64) {
        if stations != 0 {
            self.mac_moves.add(stations);
        }
    }

    /// Counts a time that an armed port had something to do and nobody told, so that it was found by the worker's look
    /// once a second. `true` the first time.
    pub(crate) fn missed_wakeup(&self) -> bool {
        self.missed_wakeups.add(1);
        self.missed_wakeups.get() == 1
    }

    /// Reads the counters, each by itself: they are not of one instant.
    pub fn read(&self) -> Counters {
        Counters {
            rx_frames: self.rx_frames.get(),
            rx_bytes: self.rx_bytes.get(),
            tx_frames: self.tx_frames.get(),
            tx_bytes: self.tx_bytes.get(),
            drops: self.drops.each_ref().map(|counter| counter.get()),
            mac_moves: self.mac_moves.get(),
            missed_wakeups: self.missed_wakeups.get(),
        }
    }
}

/// The values of a port's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames from the port into the switch.
    pub rx_frames: u64,
    /// Their bytes, Ethernet header included.
    pub rx_bytes: u64,
    /// Frames from the switch out of the port.
    pub tx_frames: u64,
    /// Their bytes, Ethernet header included.
    pub tx_bytes: u64,
    drops: [u64; DropReason::ALL.len()],
    /// Times that a station was seen at the port, and at another one before.
    pub mac_moves: u64,
    /// Times that the port had something to do and was not woken for it.
    pub missed_wakeups: u64,
}

impl Counters {
    /// Frames dropped for one reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Frames dropped for any reason.
    pub fn all_dropped(&self) -> u64 {
        self.drops.iter().sum()
    }
}
