//! The texts of VLANs, and what becomes of tags.

use super::*;
use crate::{Csum, Offload};

fn vlans(text: &str) -> Vlans {
    text.parse().unwrap()
}

fn frame(tags: &[[u8; 4]]) -> Frame {
    Frame::from_slice(&[&[2; 12][..], &tags.concat(), &[8, 0, 0x45], &[7; 45]].concat())
}

fn tag(tci: u16) -> [u8; 4] {
    let [a, b] = tci.to_be_bytes();
    [0x81, 0, a, b]
}

#[test]
fn vlans_are_read_and_shown() {
    for text in [
        "10",
        "10p/20",
        "1p/2-4094",
        "10p/20u/30-39u/40",
        "4094",
        "10t",
        "10pt",
        "10pt/20",
        "5u/20-29t",
        "none",
    ] {
        assert_eq!(vlans(text).to_string(), text);
    }
    assert_eq!(vlans("10p").to_string(), "10");
    assert_eq!(vlans("20/10p").to_string(), "10p/20");
    assert_eq!(
        (Vlans::trunk().to_string(), Vlans::untagged().to_string()),
        ("trunk".into(), "untagged".into())
    );
    assert!(vlans("10").are_given() && !Vlans::trunk().are_given() && !Vlans::untagged().are_given());
    assert_eq!((vlans("1p/2-4094").count(), vlans("10p/20").pvid()), (4094, Some(10)));
    assert!(vlans("10t").are_given() && vlans("none").are_given());
    assert_eq!((vlans("10t").pvid(), vlans("none").count()), (None, 0));
}

#[test]
fn bad_vlans_are_named_with_what_is_expected() {
    for (text, expected) in [
        ("0", "found \"0\", expected a VLAN from 1 to 4094"),
        ("4095", "found \"4095\", expected a VLAN from 1 to 4094"),
        ("4096", "found \"4096\", expected a VLAN from 1 to 4094"),
        ("99999999999", "expected a VLAN from 1 to 4094"),
        ("10p/0", "found \"0\", expected a VLAN from 1 to 4094"),
        ("10/20", "found \"10/20\", expected one VLAN marked as that of untagged frames"),
        ("10-20", "expected one VLAN marked"),
        ("10p/20p", "found \"20p\", expected one VLAN with p, of which there is one already"),
        ("10-20p", "expected p behind a single VLAN"),
        ("1p/30-20", "found \"30-20\", expected a range whose first"),
        ("20t/30", "found \"20t/30\", expected one VLAN marked"),
        ("20pu", "found \"20pu\", expected a VLAN such as 10"),
        ("none/20", "found \"none\", expected a VLAN such as 10"),
        ("ten", "found \"ten\", expected a VLAN such as 10, or several such as 10p/20/30-39"),
        ("10p/100+10x4", "found \"100+10x4\", expected a VLAN such as 10"),
        ("+10", "expected a VLAN such as 10"),
        ("", "expected a VLAN such as 10"),
    ] {
        let error = text.parse::<Vlans>().unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn frame_is_in_the_vlan_of_its_tag_or_its_port() {
    let class = |text: &str, tags: &[[u8; 4]]| vlans(text).classify(&frame(tags)).map(|class| class.vlan);
    assert_eq!(class("10", &[]), Ok(10));
    assert_eq!(class("10", &[tag(0xe000)]), Ok(10), "a priority alone");
    for tci in [10, 20, 4095, 0xf00a] {
        assert_eq!(class("10", &[tag(tci)]), Err(DropReason::Vlan), "an access port takes no tags");
    }
    assert_eq!(class("10p/20", &[tag(20)]), Ok(20));
    assert_eq!(class("10p/20", &[tag(0xa014), tag(30)]), Ok(20));
    assert_eq!(class("10p/20", &[tag(10)]), Ok(10));
    assert_eq!(class("10p/20", &[tag(30)]), Err(DropReason::Vlan));
    assert_eq!(class("10p/20", &[tag(0xe000), tag(20)]), Err(DropReason::Vlan), "behind a priority");
    let of_provider = [0x88, 0xa8, 0, 20];
    assert_eq!(class("10p/20", &[of_provider, tag(20)]), Ok(10), "a provider's tag is no tag");
    assert_eq!(class("10t/20t", &[of_provider]), Err(DropReason::Vlan));
    assert_eq!(Vlans::trunk().classify(&frame(&[tag(4095)])), Err(DropReason::Vlan));
    assert_eq!(Vlans::trunk().classify(&frame(&[tag(4094)])).map(|class| class.vlan), Ok(4094));
    assert_eq!(Vlans::untagged().classify(&frame(&[tag(1)])), Err(DropReason::Vlan));
    let cut = Frame::from_slice(&frame(&[tag(20)]).to_vec()[..17]);
    assert_eq!(vlans("10p/20").classify(&cut), Err(DropReason::Vlan));
}

#[test]
fn tag_is_removed_and_set_with_the_place_of_the_checksum() {
    let to = |from: &str, tags: &[[u8; 4]], to: &str| {
        let mut frame = frame(tags);
        let csum = Some(Csum { start: 34 + 4 * tags.len() as u16, offset: 6 });
        frame.set_offload(Offload { csum, ..Offload::NONE });
        vlans(to).retag(vlans(from).classify(&frame).unwrap()).apply(&mut frame);
        let tagged = frame.offload().csum.unwrap().start - 34;
        (frame.to_vec()[12..].to_vec(), tagged / 4)
    };
    let plain = frame(&[]).to_vec()[12..].to_vec();
    let with = |tci| [&tag(tci)[..], &plain].concat();
    assert_eq!(to("10", &[], "10"), (plain.clone(), 0));
    assert_eq!(to("10", &[], "20p/10"), (with(10), 1));
    assert_eq!(to("20p/10", &[tag(0xe00a)], "10"), (plain.clone(), 0));
    assert_eq!(to("20p/10", &[tag(0xe00a)], "30p/10"), (with(0xe00a), 1));
    assert_eq!(to("10", &[tag(0xe000)], "10"), (plain.clone(), 0));
    assert_eq!(to("10", &[tag(0xf000)], "30p/10"), (with(0xf00a), 1), "the priority is kept");
}

#[test]
fn tag_has_room_in_a_frame_whose_head_is_full() {
    let bytes: Vec<u8> = (0..1000u32).map(|at| at as u8).collect();
    let mut frame = Frame::from_slice(&bytes);
    Retag::Set(5).apply(&mut frame);
    assert_eq!(frame.to_vec(), [&bytes[..12], &tag(5), &bytes[12..]].concat());
    Retag::Remove.apply(&mut frame);
    assert_eq!(frame.to_vec(), bytes);
}

#[test]
fn vlans_are_added_and_removed_as_the_kernels_bridge_does() {
    let added = |to: &str, vlan, pvid, untagged| vlans(to).adding(vlan, pvid, untagged).to_string();
    assert_eq!(added("1", 10, false, false), "1p/10");
    assert_eq!(added("1", 10, false, true), "1p/10u");
    assert_eq!(added("1", 10, true, true), "10p/1u", "an earlier one stays untagged");
    assert_eq!(added("1", 10, true, false), "10pt/1u");
    assert_eq!(added("10p/20", 10, false, false), "10t/20t", "without marks it has none any more");
    assert_eq!(added("none", 10, false, false), "10t");
    for default in [Vlans::trunk(), Vlans::untagged()] {
        assert_eq!(default.adding(10, true, true).to_string(), "10", "in the place of the default");
        assert_eq!(default.removing(0), None);
        assert_eq!(default.removing(10), None);
    }
    let removed = |from: &str, vlan| vlans(from).removing(vlan).map(|left| left.to_string());
    assert_eq!(removed("1p/10", 10).as_deref(), Some("1"));
    assert_eq!(removed("1p/10-12", 11).as_deref(), Some("1p/10/12"));
    assert_eq!(removed("1p/10", 1).as_deref(), Some("10t"));
    assert_eq!(removed("1", 1).as_deref(), Some("none"));
    assert_eq!(removed("1p/10", 20), None);
}

#[test]
fn port_without_a_vlan_for_untagged_frames_takes_tagged_ones_alone() {
    let class = |text: &str, tags: &[[u8; 4]]| vlans(text).classify(&frame(tags)).map(|class| class.vlan);
    for untagged in [&[][..], &[tag(0xe000)]] {
        assert_eq!(class("20t", untagged), Err(DropReason::Vlan));
        assert_eq!(class("none", untagged), Err(DropReason::Vlan));
        assert_eq!(class("10pt", untagged), Ok(10));
    }
    assert_eq!(class("20t", &[tag(20)]), Ok(20));
    assert_eq!(class("10pt", &[tag(10)]), Ok(10));
    assert_eq!(class("none", &[tag(20)]), Err(DropReason::Vlan));
}
