//! Defaults, every key, and what is rejected.

use super::*;
use proptest::prelude::*;

fn parse_with(text: &str) -> (Result<VifSpec>, Warnings) {
    let mut warnings = Warnings::default();
    (VifSpec::parse(&Origin::argument("VIF"), &[text], &mut warnings), warnings)
}

#[test]
fn empty_text_gives_every_default() {
    let expected = VifSpec {
        mac: None,
        bridge: "xenbr0".into(),
        vifname: None,
        rate: None,
        rate_packets: None,
        rate_in: None,
        rate_in_packets: None,
        lock: None,
        ip: Addresses::default(),
        vlan: None,
        flags: vec![],
        storm: vec![],
        mtu: 1500,
        devid: None,
        trusted: true,
    };
    for text in ["", " , ", "mac=,bridge=", "type=vif,backend=0,trusted"] {
        assert_eq!(parse_with(text).0.unwrap(), expected, "{text:?}");
    }
}

#[test]
fn every_key_is_parsed() {
    let text = "mac=00:16:3E:74:3d:76, bridge=br1,vifname=web0,rate=1MB/s@20ms,rate-packets=20Kp/s,rate-in=8Mb/s,rate-in-packets=33p/s,lock=off,mtu=9000,devid=3,untrusted,\
         ip=10.0.0.5 fd00::/64,vlan=20/10p,isolated=on,flood=on,flood=off,storm_broadcast=9,storm_multicast=0,storm_broadcast=5";
    let expected = VifSpec {
        mac: Some(Mac([0, 0x16, 0x3e, 0x74, 0x3d, 0x76])),
        bridge: "br1".into(),
        vifname: Some("web0".into()),
        rate: Some(Rate { bytes: 20_000, interval: 20_000 }),
        rate_packets: Some(PacketRate { packets: 1000, interval: 50_000 }),
        rate_in: Some(Rate { bytes: 50_000, interval: 50_000 }),
        rate_in_packets: Some(PacketRate { packets: 2, interval: 60_606 }),
        lock: Some(Lock::Off),
        ip: "10.0.0.5 fd00::/64".parse().unwrap(),
        vlan: Some("10p/20".parse().unwrap()),
        flags: vec![(Flag::Isolated, true), (Flag::Flood, false)],
        storm: vec![(Flood::Multicast, None), (Flood::Broadcast, Some(5))],
        mtu: 9000,
        devid: Some(3),
        trusted: false,
    };
    let (vif, warnings) = parse_with(text);
    assert_eq!(vif.unwrap(), expected);
    let line = warnings.line().unwrap();
    assert!(line.starts_with("VIF: no effect: vif: untrusted (") && !line.contains("rate"), "{line}");
}

#[test]
fn parameter_without_effect_is_warned_of() {
    let (vif, warnings) = parse_with("script=vif-bridge,model=e1000,type=ioemu,accel=1");
    vif.unwrap();
    let line = warnings.line().unwrap();
    for name in ["script", "model", "type=ioemu", "accel"] {
        assert!(line.contains(&format!("vif: {name} (")), "{line}");
    }
    assert!(line.contains("scripts are not run") && !line.contains('\n'), "{line}");
}

#[test]
fn invalid_vif_is_rejected_with_parameter_found_and_expected() {
    let cases = [
        ("mac=00:16:3e", r#"VIF: vif: mac: found "00:16:3e", expected an address of one interface"#),
        ("mac=01:16:3e:00:00:00", "vif: mac: found"),
        ("mac=00:00:00:00:00:00", "vif: mac: found"),
        ("mac=00:16:3e:00:00:00:01", "vif: mac: found"),
        ("mac=00:16:3e:00:00:+1", "vif: mac: found"),
        ("mac=00:16:3e:00:00:001", "vif: mac: found"),
        ("rate=7b/s@1us", r#"vif: rate: found "0,1", expected at least one byte in an interval"#),
        ("colour=red", r#"vif: found "colour=red", expected one of"#),
        ("bridge", r#"vif: found "bridge", expected one of"#),
        ("mtu=12", r#"vif: mtu: found "12", expected bytes from 68 to 65521"#),
        ("mtu=big", r#"vif: mtu: found "big""#),
        ("rate=fast", r#"vif: rate: found "fast", expected a rate such as"#),
        ("vifname=a/b", "vif: vifname: found"),
        ("vifname=web%d", "vif: vifname: found"),
        ("type=tap", r#"vif: type: found "tap", expected vif or ioemu"#),
        ("isolated=1", r#"vif: isolated: found "1", expected on or off"#),
        ("vlan=10/20", r#"vif: vlan: found "10/20", expected one VLAN marked"#),
        ("backend=net", r#"vif: backend: found "net", expected Domain-0 (backend= names a driver domain"#),
        ("forwarddev=a", "vif: coloft_forwarddev: found"),
    ];
    for (text, part) in cases {
        let error = parse_with(text).0.unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn address_of_single_digits_is_taken_and_the_last_of_two_parameters_holds() {
    for text in ["mac=0:16:3e:1:2:3", "mac=00-16-3E-01-02-03", "mac=00:16:3e:09:09:09,mac=00:16:3e:01:02:03"]
    {
        assert_eq!(parse_with(text).0.unwrap().mac, Some(Mac([0, 0x16, 0x3e, 1, 2, 3])), "{text}");
    }
    assert_eq!(parse_with("mtu=1400,mtu=9000").0.unwrap().mtu, 9000);
}

proptest! {
    #[test]
fn mac_round_trips_through_its_text(random in any::<[u8; 3]>()) {
        let mac = Mac::xen(random);
        prop_assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
fn arbitrary_text_never_panics(text in "[ -~\u{e9}]{0,60}") {
        let _ = parse_with(&text);
    }
}
