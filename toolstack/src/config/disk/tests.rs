//! What is attached of a disk that xl has parsed, and what is refused.

use super::*;

fn parse(text: &str) -> (Result<DiskSpec>, Warnings) {
    let mut warnings = Warnings::default();
    (DiskSpec::parse(&Origin::argument("DISK"), &[text], &mut warnings), warnings)
}

fn spec(text: &str) -> DiskSpec {
    parse(text).0.unwrap()
}

#[test]
fn defaults_are_those_of_libxl() {
    let expected = DiskSpec {
        target: Some("/dev/vg/guest-volume".into()),
        format: Format::Raw,
        dev: "hda".into(),
        vdev: 768,
        writable: true,
        shared: false,
        cdrom: false,
        discard: true,
        detect_zeroes: false,
        direct_io_safe: false,
        trusted: true,
        script: None,
        limits: DiskLimits::default(),
    };
    for text in ["vg/guest-volume,,hda", "/dev/vg/guest-volume,raw,hda,rw"] {
        assert_eq!(spec(text), expected, "{text}");
    }
    let read_only = spec("/dev/vg/guest-volume,,hda,r");
    assert_eq!(read_only, DiskSpec { writable: false, discard: false, ..expected.clone() });
    assert_eq!(spec("/dev/vg/guest-volume,,hda,w!"), DiskSpec { shared: true, ..expected });
}

#[test]
fn cdrom_is_read_only_whatever_the_access_and_may_be_without_a_medium() {
    for text in ["/a.iso,,hdc,rw,cdrom", "/a.iso,,hdc,w!,cdrom"] {
        let disk = spec(text);
        assert_eq!((disk.writable, disk.shared, disk.cdrom), (false, false, true), "{text}");
    }
    for text in [",hdc:cdrom,r", "vdev=hdc,devtype=cdrom", "/a.iso,empty,hdc,cdrom"] {
        let disk = spec(text);
        assert_eq!((disk.target, disk.cdrom), (None, true), "{text}");
    }
}

#[test]
fn parameters_without_effect_are_named_in_one_line() {
    let text =
        "vdev=xvda,discard,direct-io-safe,untrusted,grant_usage=1,script=/bin/true,backendtype=tap,target=/a";
    let (disk, warnings) = parse(text);
    assert_eq!(disk.unwrap().script.as_deref(), Some("/bin/true"));
    let line = warnings.line().unwrap();
    assert!(
        line.starts_with("DISK: no effect: disk: backendtype (xpv serves every disk), disk: script ("),
        "{line}"
    );
    assert!(spec(text).discard && !line.contains("disk: discard"), "{line}");
    for name in ["grant_usage", "direct-io-safe", "untrusted"] {
        assert!(line.contains(&format!("disk: {name} (")), "{line}");
    }
    assert_eq!(parse("/a,,xvda,no-discard,trusted").1, Warnings::default());
    for read_only in ["/a,,xvda,r,discard", "/a,,xvda,cdrom,discard"] {
        let line = parse(read_only).1.line().unwrap();
        assert!(line.contains("disk: discard (the disk is read-only)"), "{line}");
    }
}

#[test]
fn what_cannot_be_had_here_is_refused_with_what_can() {
    let cases = [
        (
            "format=qcow,vdev=xvda,target=/a",
            r#"DISK: disk: format: found "qcow", expected raw or qcow2 (other"#,
        ),
        ("tap:vhd:/a,xvda,w", r#"disk: format: found "vhd", expected raw or qcow2"#),
        ("vdev=xvda,target=vhd:/a", r#"disk: target: found "vhd:/a", expected a path, with raw: or qcow2:"#),
        ("format=qcow2,vdev=xvda,target=raw:/a", r#"disk: target: found "raw:/a", expected one format"#),
        ("/a,empty,xvda", r#"disk: format: found "empty", expected raw or qcow2 (a drive without"#),
        ("/a,raw,floppy", r#"disk: vdev: found "floppy", expected a device name"#),
        ("vdev=xvda,target=", "disk: target: missing, expected the path"),
        (
            "/a,,xvda,backend=storage",
            r#"disk: backend: found "storage", expected Domain-0 (backend= names a driver"#,
        ),
        ("/a,,xvda,specification=virtio", r#"disk: specification: found "virtio", expected xen"#),
        ("/a,,xvda,colo", "disk: colo: found"),
        ("/a,,xvda,hidden-disk=/b", "disk: colo: found"),
    ];
    for (text, part) in cases {
        let error = parse(text).0.unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn limits_of_a_line_are_keys_of_the_backend() {
    let disk = spec("/srv/a.img,raw,xvda,iops-total=500,bps-read=10M,throttle-group=gold");
    let limits: Vec<_> = disk.limits.iter().collect();
    assert_eq!(limits, [("bps-read", "10485760"), ("iops-total", "500"), ("throttle-group", "gold")]);
    for (limit, expected) in [
        ("iops-total=x", r#"DISK: disk: iops-total: found "x", expected a number"#),
        ("iops-total=1,iops-total=2", r#"DISK: disk: iops-total: found "2", expected it once"#),
        ("iops-totl=1", r#"DISK: disk: found "iops-totl=1", expected a known parameter"#),
        ("bps-read-max=1", "DISK: disk: bps-read-max: "),
    ] {
        let error = parse(&format!("/srv/a.img,raw,xvda,{limit}")).0.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{limit}: {error}");
    }
}

#[test]
fn zeroes_are_detected_where_discard_is_offered() {
    for (text, expected) in
        [("/a,,xvda", false), ("/a,,xvda,detect-zeroes=off", false), ("/a,,xvda,detect-zeroes=unmap", true)]
    {
        assert_eq!(spec(text).detect_zeroes, expected, "{text}");
    }
    let refused = |text: &str| parse(text).0.unwrap_err().to_string();
    let refusal = refused("/a,,xvda,no-discard,detect-zeroes=unmap");
    assert_eq!(
        refusal,
        r#"DISK: disk: detect-zeroes: found "unmap", expected off (with no-discard nothing becomes a hole)"#
    );
    let refusal = refused("/a,,xvda,detect-zeroes=on");
    assert!(refusal.starts_with(r#"DISK: disk: detect-zeroes: found "on", expected "#), "{refusal}");
    let line = parse("/a,,xvda,r,detect-zeroes=unmap").1.line().unwrap();
    assert!(line.contains("disk: detect-zeroes (the disk is read-only)"), "{line}");
}

#[test]
fn qcow2_is_said_by_the_format_or_by_a_prefix_as_xl_and_xm_have_them() {
    for text in [
        "format=qcow2,vdev=xvda,target=/srv/a.qcow2",
        "format=raw,vdev=xvda,access=rw,script=/bin/true,target=qcow2:/srv/a.qcow2",
        "/srv/a.qcow2,qcow2,xvda,rw",
        "qcow2:/srv/a.qcow2,xvda,w",
        "tap:qcow2:/srv/a.qcow2,xvda,w",
        "tap2:qcow2:/srv/a.qcow2,xvda,w",
        "vdev=xvda,target=tap:qcow2:/srv/a.qcow2",
    ] {
        let disk = spec(text);
        assert_eq!((disk.format, disk.target), (Format::Qcow2, Some("/srv/a.qcow2".into())), "{text}");
    }
    for text in
        ["file:/srv/a.img,xvda,w", "tap:aio:/srv/a.img,xvda,w", "phy:/srv/a.img,xvda,w", "/srv/a.img,,xvda"]
    {
        let disk = spec(text);
        assert_eq!((disk.format, disk.target), (Format::Raw, Some("/srv/a.img".into())), "{text}");
    }
}
