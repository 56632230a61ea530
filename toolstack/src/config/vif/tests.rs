//! Defaults, every key, and what is rejected.

use super::*;
use proptest::prelude::*;

fn parse_with(text: &str) -> (Result<VifSpec>, Warnings) {
    let mut warnings = Warnings::default();
    (VifSpec::parse(&Origin::argument("VIF"), text, &mut warnings), warnings)
}

#[test]
fn empty_text_gives_every_default() {
    let expected = VifSpec {
        mac: None,
        bridge: "xenbr0".into(),
        vifname: None,
        rate: None,
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
    let text = "mac=00:16:3E:74:3d:76, bridge=br1,vifname=web0,rate=1MB/s@20ms,mtu=9000,devid=3,untrusted";
    let expected = VifSpec {
        mac: Some(Mac([0, 0x16, 0x3e, 0x74, 0x3d, 0x76])),
        bridge: "br1".into(),
        vifname: Some("web0".into()),
        rate: Some(Rate { bytes: 20_000, interval: 20_000 }),
        mtu: 9000,
        devid: Some(3),
        trusted: false,
    };
    let (vif, warnings) = parse_with(text);
    assert_eq!(vif.unwrap(), expected);
    let [trusted] = warnings.lines() else { panic!("{warnings:?}") };
    assert!(trusted.starts_with("VIF: vif: trusted: "));
}

#[test]
fn parameter_without_effect_is_warned_of() {
    let (vif, warnings) = parse_with("ip=10.0.0.1,script=vif-bridge,model=e1000");
    vif.unwrap();
    let [ip, script, model] = warnings.lines() else { panic!("{warnings:?}") };
    assert!(ip.starts_with("VIF: vif: ip: no effect: "), "{ip}");
    assert!(script.contains("scripts are not run") && model.contains("emulated"));
}

#[test]
fn invalid_vif_is_rejected_with_parameter_found_and_expected() {
    let cases = [
        ("mac=00:16:3e", r#"VIF: vif: mac: found "00:16:3e", expected an address of one interface"#),
        ("mac=01:16:3e:00:00:00", "vif: mac: found"),
        ("mac=00:00:00:00:00:00", "vif: mac: found"),
        ("mac=00:16:3e:00:00:00:01", "vif: mac: found"),
        ("mac=00:16:3e:00:00:+1", "vif: mac: found"),
        ("colour=red", r#"vif: found "colour=red", expected one of"#),
        ("bridge", r#"vif: found "bridge", expected one of"#),
        ("mtu=12", r#"vif: mtu: found "12", expected bytes from 68 to 65521"#),
        ("mtu=big", r#"vif: mtu: found "big""#),
        ("rate=fast", r#"vif: rate: found "fast", expected a rate such as"#),
        ("vifname=a/b", "vif: vifname: found"),
        ("type=ioemu", r#"vif: type: found "ioemu", expected vif"#),
        ("vlan=10", r#"vif: vlan: found "10", expected nothing"#),
        ("backend=net", r#"vif: backend: found "net", expected Domain-0"#),
        ("mtu=1400,mtu=1500", r#"vif: mtu: found "1500", expected it once"#),
    ];
    for (text, part) in cases {
        let error = parse_with(text).0.unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
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
