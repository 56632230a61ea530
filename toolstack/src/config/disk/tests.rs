//! The examples of xl-disk-configuration(5), and what is rejected.

use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<DiskSpec> {
    DiskSpec::parse(&Origin::argument("DISK"), text, &mut Warnings::default())
}

fn spec(target: &str, dev: &str, vdev: u32) -> DiskSpec {
    DiskSpec {
        target: target.into(),
        dev: dev.into(),
        vdev,
        writable: true,
        cdrom: false,
        discard: true,
        direct_io_safe: false,
        trusted: true,
    }
}

#[test]
fn equivalent_forms_of_the_manual_parse_to_the_same_disk() {
    let expected = spec("/dev/vg/guest-volume", "hda", 768);
    for text in [
        "/dev/vg/guest-volume,,hda",
        "/dev/vg/guest-volume,raw,hda,rw",
        "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
        "raw:/dev/vg/guest-volume,hda,w",
        "tap:aio:/dev/vg/guest-volume,hda,w",
        "vg/guest-volume,,hda",
        ",,hda,,target=/dev/vg/guest-volume",
    ] {
        assert_eq!(parse(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn cdrom_forms_of_the_manual_parse_to_the_same_disk() {
    let expected =
        DiskSpec { writable: false, cdrom: true, discard: false, ..spec("/root/image.iso", "hdc", 22 << 8) };
    for text in [
        "/root/image.iso,,hdc,cdrom",
        "/root/image.iso,,hdc,,cdrom",
        "/root/image.iso,raw,hdc,devtype=cdrom",
        "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
        "raw:/root/image.iso,hdc:cdrom,ro",
    ] {
        assert_eq!(parse(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn named_target_takes_the_rest_of_the_text_and_flags_are_set() {
    let disk = parse("vdev=xvda,no-discard,direct-io-safe,untrusted,target=/a,b:c = d ").unwrap();
    assert_eq!(disk.target, Path::new("/a,b:c = d "));
    assert_eq!((disk.discard, disk.direct_io_safe, disk.trusted), (false, true, false));
}

#[test]
fn parameter_without_effect_is_warned_of() {
    let mut warnings = Warnings::default();
    let text = "vdev=xvda,discard,direct-io-safe,untrusted,grant_usage=1,target=/a";
    DiskSpec::parse(&Origin::argument("DISK"), text, &mut warnings).unwrap();
    assert_eq!(warnings.lines().len(), 4);
    assert!(warnings.lines().iter().all(|line| line.starts_with("DISK: disk: ")), "{warnings:?}");
    let mut warnings = Warnings::default();
    DiskSpec::parse(&Origin::argument("DISK"), "/a,,xvda,no-discard,trusted", &mut warnings).unwrap();
    assert_eq!(warnings, Warnings::default());
}

#[test]
fn invalid_disk_is_rejected_with_parameter_found_and_expected() {
    let cases = [
        (
            "format=qcow2,vdev=xvda,target=/a",
            r#"DISK: disk: format: found "qcow2", expected raw (other formats"#,
        ),
        ("qcow2:/a,xvda,w", r#"disk: format: found "qcow2""#),
        ("/a,bogus,xvda", r#"disk: format: found "bogus", expected raw"#),
        ("/a,raw,xvda,rx", r#"disk: access: found "rx", expected ro, r, rw or w"#),
        ("/a,raw,floppy", r#"disk: vdev: found "floppy", expected a device name"#),
        ("/a,raw", "disk: vdev: missing, expected a device name"),
        ("vdev=xvda", "disk: target: missing, expected the path"),
        ("", "disk: vdev: missing"),
        ("/a,raw,xvda,rw,more", r#"disk: found "more", expected no more than"#),
        ("/a,,xvda,colour=red", r#"disk: found "colour=red", expected a known parameter"#),
        ("/a,,xvda,vdev=xvdb", r#"disk: vdev: found "xvdb", expected it once (it is "xvda" already)"#),
        ("/a,,xvda,script=block-x", r#"disk: script: found "block-x", expected nothing"#),
        ("/a,,xvda,backend=storage", r#"disk: backend: found "storage", expected Domain-0"#),
        ("/a,,xvda,backendtype=qdisk", r#"disk: backendtype: found "qdisk", expected phy"#),
        ("/a,,xvda,specification=virtio", r#"disk: specification: found "virtio", expected xen"#),
        ("/a,,xvda,colo", "disk: colo: found"),
        ("iscsi:iqn,xvda,w", r#"disk: script: found "block-iscsi""#),
    ];
    for (text, part) in cases {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
fn named_target_is_kept_byte_for_byte(target in "/[ -~]{0,40}") {
        let disk = parse(&format!("vdev=xvdb,target={target}")).unwrap();
        prop_assert_eq!(disk.target, Path::new(&target));
    }

    #[test]
fn arbitrary_text_never_panics(text in "[ -~\u{e9}]{0,60}") {
        let _ = parse(&text);
    }
}
