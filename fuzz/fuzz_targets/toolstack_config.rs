//! Configurations that an administrator, or a program in his place, has written: a guest's in xl's syntax, a machine's in TOML, single
//! lines of disks and vifs. What is accepted prints as JSON, and reads the same again.
#![no_main]

use std::path::Path;

use toolstack::config::GuestConfig;
use toolstack::config::device_disk::DeviceDisk;
use toolstack::config::device_nic::DeviceNic;
use toolstack::config::host::HostConfig;
use toolstack::error::Origin;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let origin = Origin::file(Path::new("fuzz.cfg"));
    let read = || GuestConfig::parse(&origin, text, &[]).map(|config| format!("{config:?}"));
    match (read(), read()) {
        (Ok(first), Ok(second)) => assert_eq!(first, second),
        (Err(error), Err(_)) => assert!(error.to_string().contains("fuzz.cfg"), "{error}"),
        _ => panic!("accepted once and refused once"),
    }
    let _ = HostConfig::parse(&origin, text);
    let _ = DeviceDisk::parse(&origin, &[text]);
    let _ = DeviceNic::parse(&origin, &[text]);
});
