//! `xpv -N` in `xl -N`'s place: what it prints, byte for byte, for the forms of xl's own checks of its disk and vif syntax and for
//! a whole configuration. What is expected is what xl of Xen 4.17 prints.

use std::process::Command;

const XPV: &str = env!("CARGO_BIN_EXE_xpv");

/// Runs `xpv -N`; what it prints, `None` if it fails with status 1.
fn dry_run(args: &[&str]) -> Option<String> {
    let output = Command::new(XPV).arg("-N").args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(String::from_utf8(output.stdout).unwrap()),
        Some(1) if output.stdout.is_empty() && !errors.is_empty() => None,
        _ => panic!("{args:?}: {output:?}"),
    }
}

/// Checks that a command prints an object with these members, in this order.
fn check(command: &str, args: &[&str], members: &[(&str, &str)]) {
    let kind = if command == "block-attach" { "disk" } else { "vif" };
    let lines: Vec<_> = members.iter().map(|(name, value)| format!("    \"{name}\": {value}")).collect();
    let expected = format!("{kind}: {{\n{}\n}}\n\n", lines.join(",\n"));
    let args = [&[command, "0"], args].concat();
    assert_eq!(dry_run(&args).as_deref(), Some(expected.as_str()), "{args:?}");
}

#[test]
fn disks_are_printed_as_by_xl() {
    let disk = |args: &[&str], members: &[(&str, &str)]| check("block-attach", args, members);
    let text =
        [("pdev_path", "\"/dev/vg/a\""), ("vdev", "\"hda\""), ("format", "\"raw\""), ("readwrite", "1")];
    disk(&["/dev/vg/a,,hda"], &text);
    disk(&["format=raw, vdev=hda, access=rw, target=/dev/vg/a"], &text);
    disk(&["format=raw", "vdev=hda", "access=rw", "target=/dev/vg/a"], &text);
    let iso = [("pdev_path", "\"/a.iso\""), ("vdev", "\"hdc\""), ("format", "\"raw\"")];
    let cdrom = [("removable", "1"), ("is_cdrom", "1")];
    disk(&["/a.iso,,hdc,cdrom"], &[&iso[..], &cdrom].concat());
    disk(&["raw:/a.iso,hdc:cdrom,ro"], &[&iso[..], &cdrom].concat());
    let no_discard = [("discard_enable", "\"False\"")];
    disk(&["cdrom", "no-discard", "vdev=hdc", "target=/a.iso"], &[&iso[..], &cdrom, &no_discard].concat());
    let empty = [("vdev", "\"hdc\""), ("format", "\"empty\""), cdrom[0], cdrom[1]];
    disk(&["vdev=hdc,access=r,devtype=cdrom"], &empty);
    disk(&[",hdc:cdrom,r"], &[&[("pdev_path", "\"\"")], &empty[..]].concat());
    let script = [
        ("pdev_path", "\"iqn.1:2\""),
        ("vdev", "\"xvda\""),
        ("format", "\"raw\""),
        ("script", "\"block-iscsi\""),
        ("readwrite", "1"),
    ];
    disk(&["iscsi:iqn.1:2,xvda,w"], &script);
    let other = [
        ("backend_domname", "\"storage\""),
        ("pdev_path", "\"/a\""),
        ("vdev", "\"xvda\""),
        ("backend", "\"qdisk\""),
        ("format", "\"qcow2\""),
        ("readwrite", "1"),
        ("direct_io_safe", "true"),
        ("discard_enable", "\"True\""),
        ("trusted", "\"False\""),
    ];
    disk(&["backend=storage,backendtype=qdisk,direct-io-safe,discard,untrusted", "/a,qcow2,xvda"], &other);
    let image = |path: &'static str, format: &'static str| {
        [("pdev_path", path), ("vdev", "\"xvda\""), ("format", format), ("readwrite", "1")]
    };
    for text in ["tap:qcow2:/a,xvda,w", "tap2:qcow2:/a,xvda,w", "qcow2:/a,xvda,w", "/a,qcow2,xvda"] {
        disk(&[text], &image("\"/a\"", "\"qcow2\""));
    }
    for text in ["tap:aio:/a,xvda,w", "file:/a,xvda,w", "phy:/a,xvda,w", "aio:/a,xvda,w"] {
        disk(&[text], &image("\"/a\"", "\"raw\""));
    }
    // What follows `target=` is as it is.
    disk(&["vdev=xvda,target=qcow2:/a"], &image("\"qcow2:/a\"", "\"raw\""));
    disk(&["vdev=xvda", "target=tap:aio:/a"], &image("\"tap:aio:/a\"", "\"raw\""));
    for refused in ["foo", "tap:ram:/a,xvda,w", "vdi:/a,xvda,w"] {
        assert_eq!(dry_run(&["block-attach", "0", refused]), None, "{refused}");
    }
}

#[test]
fn vifs_are_printed_as_by_xl() {
    let vif = |args: &[&str], members: &[(&str, &str)]| check("network-attach", args, members);
    vif(&["mac=0:16:3e:1:2:3"], &[("mac", "\"00:16:3e:01:02:03\"")]);
    let rate = [("rate_bytes_per_interval", "100000"), ("rate_interval_usecs", "50000")];
    for text in ["16000000b/s", "2000000B/s@50ms", "16Mb/s", "2MB/s@50ms"] {
        vif(&[&format!("rate={text}")], &rate);
    }
    vif(&["rate=8b/s@20ms"], &[("rate_interval_usecs", "20000")]);
    let all = [
        ("backend_domname", "\"net\""),
        ("devid", "3"),
        ("mtu", "1400"),
        ("model", "\"e1000\""),
        ("ip", "\"10.0.0.1\""),
        ("bridge", "\"br0\""),
        ("ifname", "\"web0\""),
        ("script", "\"vif-bridge\""),
        ("nictype", "\"vif_ioemu\""),
        ("gatewaydev", "\"eth0\""),
        ("coloft_forwarddev", "\"f\""),
        ("trusted", "\"True\""),
    ];
    let text = "trusted,script=vif-bridge,type=ioemu,netdev=eth0,ip=10.0.0.1,bridge=br0,vifname=web0";
    vif(&[text, "model=e1000", "mtu=1400", "devid=3", "backend=net", "forwarddev=f"], &all);
    assert_eq!(dry_run(&["network-attach", "0"]).unwrap(), "vif: {\n\n}\n\n");
    for refused in
        ["foo", "rate=10MB", "rate=0B/s", "rate=1B/s@0us", "rate=4296MB/s@4294s", "rate=@", "mac=1:2:3"]
    {
        assert_eq!(dry_run(&["network-attach", "0", refused]), None, "{refused}");
    }
}

#[test]
fn configuration_is_printed_with_the_members_that_xl_prints_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let cfg = dir.path().join("web.cfg");
    std::fs::write(
        &cfg,
        "name = 'web'\nkernel = 'k'\ndisk = ['qcow2:/a,xvda,w']\nvif = ['', 'devid=7,bridge=b']\n",
    )
    .unwrap();
    let printed = dry_run(&["create", cfg.to_str().unwrap(), "name='other'"]).unwrap();
    let expected = r#"{
    "c_info": {
        "name": "other"
    },
    "disks": [
        {
            "pdev_path": "/a",
            "vdev": "xvda",
            "format": "qcow2",
            "readwrite": 1
        }
    ],
    "nics": [
        {
            "devid": 0
        },
        {
            "devid": 7,
            "bridge": "b"
        }
    ]
}
"#;
    assert_eq!(printed, expected);
}

#[test]
fn command_that_does_not_parse_only_is_refused() {
    let output = Command::new(XPV).args(["-N", "list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("-N is for create, block-attach"), "{output:?}");
}
