//! Forms of xl-disk-configuration(5) and what xl makes of them, and what xl rejects.

use super::*;
use proptest::prelude::*;

fn parse(texts: &[&str]) -> Result<DeviceDisk> {
    DeviceDisk::parse(&Origin::argument("DISK"), texts)
}

fn disk(target: &str, vdev: &str) -> DeviceDisk {
    let format = "raw".to_owned();
    DeviceDisk {
        target: Some(target.into()),
        vdev: vdev.into(),
        format,
        writable: true,
        ..DeviceDisk::default()
    }
}

/// A drive that is a CD-ROM.
fn cdrom(target: Option<&str>) -> DeviceDisk {
    let format = if target.is_some_and(|target| !target.is_empty()) { "raw" } else { "empty" };
    DeviceDisk {
        target: target.map(str::to_owned),
        vdev: "hdc".into(),
        format: format.into(),
        removable: true,
        is_cdrom: true,
        ..DeviceDisk::default()
    }
}

#[test]
fn equivalent_forms_parse_to_the_same_disk() {
    let expected = disk("/dev/vg/a", "hda");
    for text in [
        "/dev/vg/a,,hda",
        "/dev/vg/a,raw,hda,rw",
        "format=raw, vdev=hda, access=rw, target=/dev/vg/a",
        "raw:/dev/vg/a,hda,w",
        "tap:aio:/dev/vg/a,hda,w",
        ",,hda,,target=/dev/vg/a",
        "phy:/dev/vg/a,ioemu:hda,w",
        "/dev/vg/a,,hda,r,access=w",
    ] {
        assert_eq!(parse(&[text]).unwrap(), expected, "{text}");
    }
}

#[test]
fn parameters_in_arguments_of_their_own_parse_to_the_same_disk() {
    let expected = disk("/dev/vg/a,b", "hda");
    assert_eq!(parse(&["format=raw", "vdev=hda", "access=rw", "target=/dev/vg/a,b"]).unwrap(), expected);
    // The target takes the rest of its argument alone.
    assert_eq!(parse(&["target=/dev/vg/a,b", "vdev=hda"]).unwrap(), expected);
}

#[test]
fn cdrom_forms_parse_to_the_same_drive_which_is_read_only_and_removable() {
    for text in [
        "/root/image.iso,,hdc,cdrom",
        "/root/image.iso,,hdc,rw,cdrom",
        "/root/image.iso,raw,hdc,devtype=cdrom",
        "format=raw, vdev=hdc, access=rw, devtype=cdrom, target=/root/image.iso",
        "raw:/root/image.iso,hdc:cdrom,ro",
    ] {
        assert_eq!(parse(&[text]).unwrap(), cdrom(Some("/root/image.iso")), "{text}");
    }
}

#[test]
fn drive_without_a_medium_is_a_cdrom_without_a_target() {
    for text in [
        "devtype=cdrom,,,hdc",
        ",,hdc:cdrom,r",
        ",hdc:cdrom,r",
        "vdev=hdc,access=r,devtype=cdrom,target=",
        ",empty,hdc:cdrom,r",
        ",hdc:cdrom",
        ",,hdc,,cdrom",
    ] {
        assert_eq!(parse(&[text]).unwrap(), cdrom(Some("")), "{text}");
    }
    for text in ["vdev=hdc,access=r,devtype=cdrom,format=empty", "vdev=hdc,access=r,devtype=cdrom"] {
        assert_eq!(parse(&[text]).unwrap(), cdrom(None), "{text}");
    }
}

#[test]
fn scripts_and_flags_are_kept() {
    let script = |script: &str, target: &str, vdev: &str| DeviceDisk {
        script: Some(script.to_owned()),
        ..disk(target, vdev)
    };
    let target = "iqn.2001-05.com.example:0-8a0906";
    assert_eq!(parse(&[&format!("iscsi:{target},xvda,w")]).unwrap(), script("block-iscsi", target, "xvda"));
    assert_eq!(parse(&["drbd:app01,hda,w"]).unwrap(), script("block-drbd", "app01", "hda"));
    let text = "script=/bin/true,vdev=xvda,target=/a";
    assert_eq!(parse(&[text]).unwrap(), script("/bin/true", "/a", "xvda"));
    let flags = DeviceDisk {
        discard: Some(false),
        direct_io_safe: true,
        trusted: Some(false),
        backend_type: Some("qdisk".into()),
        backend_domain: Some("storage".into()),
        ..disk("/a", "xvda")
    };
    let text = "no-discard,direct-io-safe,untrusted,backendtype=qdisk,backend=storage,/a,,xvda";
    assert_eq!(parse(&[text]).unwrap(), flags);
    let shared = DeviceDisk { shared: true, ..disk("/a", "xvda") };
    assert_eq!(parse(&["/a,,xvda,w!"]).unwrap(), shared);
}

#[test]
fn invalid_disk_is_rejected_with_parameter_found_and_expected() {
    let cases = [
        ("/a,bogus,xvda", r#"DISK: disk: format: found "bogus", expected one of raw, "#),
        ("/a,raw,xvda,rx", r#"disk: access: found "rx", expected ro, r, rw, w, or w! to share it"#),
        ("/a,raw", "disk: vdev: missing, expected a device name"),
        ("vdev=xvda", "disk: target: missing, expected the path"),
        ("", "disk: vdev: missing"),
        ("/a,raw,xvda,rw,more", r#"disk: found "more", expected no more than"#),
        ("/a,,xvda,colour=red", r#"disk: found "colour=red", expected a known parameter"#),
        ("/a,,xvda,vdev=xvdb", r#"disk: vdev: found "xvdb", expected it once (it is "xvda" already)"#),
        ("/a,,xvda,vdev=xvda", r#"disk: vdev: found "xvda", expected it once (it is "xvda" already)"#),
        ("raw:/a,xvda,format=vhd", r#"disk: format: found "vhd", expected it once"#),
        ("http:/a,,xvda", r#"disk: target: found "http:/a,,xvda", expected a path without this prefix"#),
        ("/a,,xvda:tape", r#"disk: devtype: found "tape", expected disk or cdrom"#),
    ];
    for (text, part) in cases {
        let error = parse(&[text]).unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
    fn named_target_is_kept_byte_for_byte(target in "/[ -~]{0,40}[ -+.-~]") {
        let disk = parse(&[&format!("vdev=xvdb,target={target}")]).unwrap();
        prop_assert_eq!(disk.target.unwrap(), target);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "[ -~\u{e9}]{0,60}") {
        let _ = parse(&[&text]);
    }
}
