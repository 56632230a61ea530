//! The crate needs neither `std` nor an allocator: it is `no_std`, never names `alloc`, and enables no feature of a
//! dependency that needs either. Only the module of the feature `testing` allocates.
#![cfg(not(any(loom, miri)))] // Runs cargo.

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::path::Path;

fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The code lines before a file's tests.
fn shipped(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.contains("#[cfg(test)]"))
        .filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn sources_name_neither_std_nor_alloc() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let (_, root) = found.iter().find(|(name, _)| name.ends_with("src/lib.rs")).unwrap();
    assert!(root.lines().any(|line| line == "#![no_std]"));
    for (name, text) in found.iter().filter(|(name, _)| !name.ends_with("src/testing.rs")) {
        for line in shipped(text) {
            assert!(
                !line.contains("std::") && !line.contains("alloc::") && !line.contains("extern crate"),
                "{name}: {line}"
            );
        }
    }
}

#[test]
fn dependencies_have_no_std_feature() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().expect("cargo");
    let package = metadata.packages.iter().find(|p| p.name.as_str() == "ring-abi").expect("this package");
    let dependencies =
        package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal && d.target.is_none());
    let mut names = Vec::new();
    for dependency in dependencies {
        names.push(dependency.name.as_str());
        assert!(!dependency.features.iter().any(|f| f == "std" || f == "alloc"), "{}", dependency.name);
        // `bitflags` has no default features; of the others the default is `std`.
        assert!(!dependency.uses_default_features || dependency.name == "bitflags", "{}", dependency.name);
    }
    names.sort_unstable();
    assert_eq!(
        names,
        ["arrayvec", "bitflags", "thiserror"],
        "a new dependency: check that it is no_std and needs no alloc"
    );
}
