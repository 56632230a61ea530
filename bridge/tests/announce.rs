//! A guest's port is announced to the ports that are of no guest, as it is attached.

mod common;

use bridge::{Bridge, Caps, Config, PortSettings, fdb::Mac};
use common::{pair, take};

fn guest(last: u8, addresses: &str, vlan: Option<&str>) -> PortSettings {
    PortSettings {
        address: Some(Mac::new([2, 0, 0, 0, 0, last])),
        allowed: addresses.parse().unwrap(),
        vlans: vlan.map(|vlan| vlan.parse().unwrap()).unwrap_or_default(),
        ..PortSettings::default()
    }
}

#[test]
fn guest_is_announced_to_the_uplink_alone_and_in_its_vlan() {
    let bridge = Bridge::start(Config { announces: true, ..Config::default() }).unwrap();
    let [(mut uplink, up), (mut one, first), (_two, second), (_three, third)] =
        [(); 4].map(|()| pair(Caps::plain(1500)));
    bridge.attach("uplink", Box::new(up)).unwrap();
    bridge.attach_with("one", Box::new(first), guest(1, "", None)).unwrap();
    bridge.attach_with("two", Box::new(second), guest(2, "10.0.0.2 fd00::2", None)).unwrap();
    let frames: Vec<Vec<u8>> = take(&mut uplink, 4).iter().map(bridge::Frame::to_vec).collect();
    let types: Vec<(u8, [u8; 2])> = frames.iter().map(|frame| (frame[11], [frame[12], frame[13]])).collect();
    assert_eq!(types, [(1, [0x80, 0x35]), (2, [0x80, 0x35]), (2, [8, 6]), (2, [0x86, 0xdd])]);

    bridge.attach_with("three", Box::new(third), guest(3, "", Some("10"))).unwrap();
    let tagged = take(&mut uplink, 1)[0].to_vec();
    assert_eq!((tagged[11], &tagged[12..18]), (3, &[0x81, 0, 0, 10, 0x80, 0x35][..]));
    // What follows is the first frame that other guests' ports have.
    let hello = bridge::Frame::from_slice(&[&[0xff; 6][..], &[2, 0, 0, 0, 0, 9], &[8, 0], &[0; 46]].concat());
    common::send(&mut uplink, &[hello]);
    assert_eq!(take(&mut one, 1)[0].to_vec()[11], 9);
}
