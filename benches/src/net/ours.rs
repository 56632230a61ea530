//! Our side of the network rows: 64-byte frames out of a guest, and through the bridge into another.

use super::guests::Machine;
use super::pump::{Guests, WARM_UP, send_burst};
use crate::cores::pin;
use bridge::{Batch, Bridge, Lock, Port, PortSettings, Rate, RateLimits, fdb::Mac};
use netfront::handshake::RxChoice;
use netfront::{Config, Gso, Meta, SendOutcome};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A frame of `len` bytes from one address to another.
pub fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; len];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// Frames a second, in millions, out of a guest on one core and taken from its vif, content and all, on another.
///
/// # Errors
/// Whatever went wrong, in words.
pub fn to_dom0(cores: [usize; 2], len: usize, time: Duration) -> Result<f64, String> {
    let machine = Machine::new();
    let (mut nic, mut vif) = machine.vif(1, Config::default())?;
    let stop = AtomicBool::new(false);
    let bytes = frame([2, 0, 0, 0, 0, 9], nic.mac(), len);
    let mut rate = Err("the vif failed".into());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(cores[0]);
            while !stop.load(Relaxed) {
                if send_burst(&mut nic, &bytes) == 0 {
                    std::hint::spin_loop();
                }
            }
        });
        scope.spawn(|| {
            pin(cores[1]);
            rate = take(&mut vif, time).map_err(|e| e.to_string());
            stop.store(true, Relaxed);
        });
    });
    rate
}

fn take(vif: &mut impl Port, time: Duration) -> std::io::Result<f64> {
    let mut batch = Batch::new(64);
    let mut frames = 0u64;
    let start = Instant::now();
    let mut counted: Option<Instant> = None;
    loop {
        for _ in 0..64 {
            vif.recv(&mut batch)?;
            frames += batch.len() as u64;
            batch.clear();
            vif.flush()?;
        }
        match counted {
            None if start.elapsed() >= WARM_UP => (counted, frames) = (Some(Instant::now()), 0),
            Some(since) if since.elapsed() >= time => {
                return Ok(frames as f64 / since.elapsed().as_secs_f64() / 1e6);
            }
            _ => {}
        }
    }
}

/// Frames a second, in millions, out of a guest, through the bridge on another core, and into a second guest, which
/// share a core.
///
/// # Errors
/// Whatever went wrong, in words.
pub fn to_guest(cores: [usize; 2], len: usize, time: Duration) -> Result<f64, String> {
    let frame = |to, from| (frame(to, from, len), Meta::default());
    let config = Config { rx: RxChoice::Copy, ..Config::default() };
    between_guests(cores, config, |_| PortSettings::default(), frame, time)
}

/// As [`to_guest`], of UDP; with `features` both ports have rates in both directions, which are not reached, `lock=ip` and a VLAN.
///
/// # Errors
/// Whatever went wrong, in words.
pub fn udp_to_guest(cores: [usize; 2], features: bool, time: Duration) -> Result<f64, String> {
    let config = Config { rx: RxChoice::Copy, ..Config::default() };
    let frame = |to, from| (udp(to, from), Meta::default());
    let settings = |address| if features { all_features(address) } else { PortSettings::default() };
    between_guests(cores, config, settings, frame, time)
}

/// What an administrator may ask of a port, with rates above what any port does.
fn all_features(address: [u8; 6]) -> PortSettings {
    let rate = |amount| Some(Rate { amount, interval: Duration::from_millis(50) });
    let rates = RateLimits { bytes: rate(1 << 36), packets: rate(1 << 30) };
    PortSettings {
        address: Some(Mac::new(address)),
        lock: Lock::Ip,
        allowed: "10.0.0.0/24".parse().expect("a prefix"),
        vlans: "10".parse().expect("a VLAN"),
        rate: rates,
        rate_in: rates,
        ..PortSettings::default()
    }
}

/// A datagram over IPv4 in a frame of 64 bytes.
fn udp(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    const LEN: u8 = 64;
    let mut bytes = frame(to, from, LEN.into());
    bytes[12..42].fill(0);
    bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
    bytes[17] = LEN - 14;
    // Time to live, UDP, and addresses.
    bytes[22..24].copy_from_slice(&[64, 17]);
    bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    // Ports and length.
    bytes[34..40].copy_from_slice(&[16, 0, 16, 0, 0, LEN - 34]);
    bytes
}

/// As [`to_guest`], of unsegmented TCP in frames of `len` bytes.
///
/// # Errors
/// Whatever went wrong, in words.
pub fn gso_to_guest(cores: [usize; 2], len: usize, time: Duration) -> Result<f64, String> {
    let config = Config { csum: true, gso: true, rx: RxChoice::Copy, ..Config::default() };
    let meta = Meta { csum_blank: true, verified: true, gso: Some(Gso { v6: false, size: 1448 }) };
    between_guests(cores, config, |_| PortSettings::default(), |to, from| (tcp(to, from, len), meta), time)
}

/// A TCP segment over IPv4 in a frame of `len` bytes, whose checksum is blank.
fn tcp(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut bytes = frame(to, from, len);
    bytes[12..54].fill(0);
    bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
    bytes[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    // Time to live, TCP, and addresses.
    bytes[22..24].copy_from_slice(&[64, 6]);
    bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    // Its header's length in words, and ACK.
    bytes[46..48].copy_from_slice(&[5 << 4, 0x10]);
    bytes
}

/// Frames a second, in millions, of those that `make` makes of the receiver's and the sender's address.
fn between_guests(
    cores: [usize; 2],
    config: Config,
    settings: impl Fn([u8; 6]) -> PortSettings,
    make: impl Fn([u8; 6], [u8; 6]) -> (Vec<u8>, Meta),
    time: Duration,
) -> Result<f64, String> {
    let machine = Machine::new();
    let (mut a, vif_a) = machine.vif(1, config)?;
    let (mut b, vif_b) = machine.vif(2, config)?;
    // A thread inherits the processors of the one that starts it.
    pin(cores[1]);
    let bridge = Bridge::start(bridge::Config::default()).map_err(|e| e.to_string())?;
    bridge.attach_with("vif1.0", Box::new(vif_a), settings(a.mac())).map_err(|e| e.to_string())?;
    bridge.attach_with("vif2.0", Box::new(vif_b), settings(b.mac())).map_err(|e| e.to_string())?;
    pin(cores[0]);
    let (bytes, meta) = make(b.mac(), a.mac());
    let mut into = vec![0; 65_536];
    let hello = udp(a.mac(), b.mac());
    while b.send(&hello) != SendOutcome::Queued {}
    b.flush();
    while a.recv(&mut into).is_none() {
        a.wait(false, Duration::from_secs(1)).map_err(|e| e.to_string())?;
    }
    let mut guests = Guests { a, b, bytes, meta, into };
    let rate = guests.pump(time);
    // Before its vifs' frontends are gone, which it would report.
    bridge.stop();
    rate
}

/// Nanoseconds of one core for a frame out of a guest, both sides alternately on one thread.
///
/// # Errors
/// Whatever went wrong, in words.
pub fn one_thread(len: usize, rounds: usize) -> Result<(f64, f64), String> {
    let machine = Machine::new();
    let (mut nic, mut vif) = machine.vif(1, Config::default())?;
    let bytes = frame([2, 0, 0, 0, 0, 9], nic.mac(), len);
    let mut batch = Batch::new(64);
    let mut front = Duration::ZERO;
    let mut back = Duration::ZERO;
    let mut frames = 0;
    for _ in 0..rounds {
        let start = cpu();
        for _ in 0..4 {
            frames += send_burst(&mut nic, &bytes);
        }
        let middle = cpu();
        for _ in 0..2 {
            vif.recv(&mut batch).map_err(|e| e.to_string())?;
            batch.clear();
        }
        vif.flush().map_err(|e| e.to_string())?;
        let end = cpu();
        front += middle - start;
        back += end - middle;
    }
    let per = |time: Duration| time.as_nanos() as f64 / frames as f64;
    Ok((per(front), per(back)))
}

fn cpu() -> Duration {
    let id = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    Duration::from(nix::time::clock_gettime(id).expect("every thread has a clock"))
}

/// Nanoseconds of one core at each stage of a frame from guest to guest, all on one thread: the sender, the vif that
/// receives, the vif that sends, the receiver. The switch is left out.
///
/// # Errors
/// Whatever went wrong, in words.
pub fn stages(len: usize, rounds: usize) -> Result<[f64; 4], String> {
    let machine = Machine::new();
    let (mut a, mut vif_a) = machine.vif(1, Config::default())?;
    let (mut b, mut vif_b) = machine.vif(2, Config::default())?;
    let bytes = frame(b.mac(), a.mac(), len);
    let mut batch = Batch::new(64);
    let mut into = vec![0; 65_536];
    let mut frames = 0;
    let mut spent = [Duration::ZERO; 4];
    for _ in 0..rounds {
        let start = cpu();
        frames += send_burst(&mut a, &bytes) + send_burst(&mut a, &bytes);
        let sent = cpu();
        vif_a.recv(&mut batch).map_err(|e| e.to_string())?;
        let switched = cpu();
        vif_b.send(batch.all()).map_err(|e| e.to_string())?;
        vif_b.flush().map_err(|e| e.to_string())?;
        let delivered = cpu();
        batch.clear();
        vif_a.flush().map_err(|e| e.to_string())?;
        let cleared = cpu();
        while b.recv(&mut into).is_some() {}
        b.flush();
        let end = cpu();
        for (sum, time) in spent.iter_mut().zip([
            sent - start,
            (switched - sent) + (cleared - delivered),
            delivered - switched,
            end - cleared,
        ]) {
            *sum += time;
        }
    }
    Ok(spent.map(|time| time.as_nanos() as f64 / frames as f64))
}
