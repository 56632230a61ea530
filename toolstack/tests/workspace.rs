//! Checks that the code matches ARCHITECTURE.md: what crates import of each other, cores without I/O, which crates may name
//! a hypervisor, and modules that do not need each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use source::{Source, packages, root};

#[path = "workspace/module_circles.rs"]
mod module_circles;
#[path = "workspace/module_tree.rs"]
mod module_tree;
#[path = "workspace/source.rs"]
mod source;

/// Crates whose source files are cores, protocols as values, unless a file's first line is [`DOES_IO`].
const CORES: &[&str] = &[
    "blkback",
    "blkfront",
    "bridge",
    "event-channel",
    "event-loop",
    "grant-table",
    "inflight",
    "netback",
    "netfront",
    "ring-abi",
    "shared-copy",
    "xenbus",
    "xenstore",
];

/// The first line of a file that may do I/O, start threads, read the clock or call a hypervisor. A new file is a core
/// until somebody writes this line.
const DOES_IO: &str = "// Not a core: does I/O or calls a hypervisor.";

/// Crates that choose a hypervisor; the others have it for their tests only.
const DEPENDS_ON_HYPERVISOR: &[&str] = &["benches", "testkit", "toolstack"];

/// Paths that a core never names: grants and events, which are calls of a hypervisor, the operating system and the clock.
const FORBIDDEN: &[&[&str]] = &[
    &["grant_table"],
    &["event_channel"],
    &["inflight", "InflightDir"],
    &["inflight", "InflightRegion"],
    &["std", "io"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "os"],
    &["std", "thread"],
    &["std", "process"],
    &["Instant", "now"],
    &["SystemTime"],
    &["nix"],
    &["libc"],
];

/// The crates of this workspace, and what each imports of the others other than for its tests.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let packages = packages();
    let names: BTreeSet<_> = packages.iter().map(|package| package.name.to_string()).collect();
    let imports = |package: &cargo_metadata::Package| {
        let normal =
            package.dependencies.iter().filter(|d| d.kind != cargo_metadata::DependencyKind::Development);
        normal.map(|d| d.name.clone()).filter(|name| names.contains(name)).collect()
    };
    packages.iter().map(|package| (package.name.to_string(), imports(package))).collect()
}

/// The table of ARCHITECTURE.md's section "Dependencies": `CRATE -> CRATE CRATE ...`, `nothing` for none.
fn documented_imports() -> BTreeMap<String, BTreeSet<String>> {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let section = page.split("## Dependencies").nth(1).expect("the section Dependencies");
    let table = section.split("```").nth(1).expect("its table");
    let rows = table.lines().filter_map(|line| line.split_once("->"));
    let crates =
        |text: &str| text.split_whitespace().filter(|w| *w != "nothing").map(str::to_owned).collect();
    rows.map(|(name, imported)| (name.trim().to_owned(), crates(imported))).collect()
}

#[test]
fn crates_import_what_the_architecture_says() {
    assert_eq!(imports(), documented_imports(), "left: cargo metadata; right: ARCHITECTURE.md");
}

#[test]
fn frontends_and_backends_do_not_import_each_other() {
    let imports = imports();
    for (one, other) in [("blkback", "blkfront"), ("netback", "netfront")] {
        assert!(!imports[one].contains(other) && !imports[other].contains(one), "{one}, {other}");
    }
    let independent = BTreeSet::from(["event-loop", "shared-copy"].map(str::to_owned));
    assert_eq!((&imports["bridge"], imports["event-loop"].len()), (&independent, 0), "neither knows of Xen");
}

#[test]
fn cores_do_no_io_and_read_no_clock() {
    let mut wrong = Vec::new();
    for file in CORES.iter().flat_map(|name| sources(&root().join(name).join("src"))) {
        let paths = Source::read(&file).paths;
        let names_io = paths.iter().find(|named| forbidden(&named.path).is_some());
        match (does_io(&file), names_io) {
            (false, Some(named)) => wrong.push(format!(
                "{}:{}: a core names {}",
                file.display(),
                named.line,
                named.path.join("::")
            )),
            (true, None) => wrong.push(format!("{}: marked {DOES_IO:?}, and does none", file.display())),
            _ => {}
        }
    }
    assert!(
        wrong.is_empty(),
        "files are cores unless their first line is {DOES_IO:?}:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn only_programs_depend_on_a_hypervisor() {
    let imports = imports();
    let users =
        imports.iter().filter(|(_, imported)| imported.contains("hypervisor")).map(|(name, _)| name.as_str());
    assert_eq!(users.collect::<Vec<_>>(), DEPENDS_ON_HYPERVISOR);
}

/// Crates that a kernel embeds without std, and all that they then depend on, programs of the build aside.
const WITHOUT_STD: &[(&str, &[&str])] = &[
    ("shared-copy", &[]),
    ("ring-abi", &["arrayvec", "bitflags", "thiserror"]),
    ("event-loop", &[]),
    (
        "grant-table",
        &["foldhash", "hashbrown", "lru", "pin-project-lite", "smallvec", "tracing", "tracing-core"],
    ),
    ("event-channel", &[]),
    ("inflight", &[]),
    ("xenbus", &[]),
    ("blkfront", &[]),
    ("netfront", &[]),
];

#[test]
fn crates_without_std_depend_on_nothing_that_needs_it() {
    let names = WITHOUT_STD.iter().flat_map(|(name, others)| others.iter().chain([name]));
    let allowed: BTreeSet<&str> = names.copied().collect();
    for (name, _) in WITHOUT_STD {
        let output = Command::new(env!("CARGO"))
            .args([
                "tree",
                "-e",
                "normal,no-proc-macro",
                "--no-default-features",
                "--prefix",
                "none",
                "--no-dedupe",
            ])
            .args(["--format", "{lib}", "-p", name])
            .current_dir(root())
            .output()
            .expect("cargo tree");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed = String::from_utf8(output.stdout).expect("names").replace('_', "-");
        let crates: BTreeSet<&str> = listed.split_whitespace().collect();
        assert!(crates.contains(name), "{listed}");
        let wrong: Vec<_> = crates.difference(&allowed).collect();
        assert!(wrong.is_empty(), "{name} without std depends on {wrong:?}");
    }
}

#[test]
fn unsafe_is_allowed_only_with_a_reason() {
    for name in imports().keys() {
        for file in sources(&root().join(name).join("src")) {
            let text = fs::read_to_string(&file).expect("a source file");
            let lines: Vec<_> = text.lines().collect();
            for (number, line) in lines.iter().enumerate().filter(|(_, l)| l.contains("allow(unsafe_code)")) {
                let above = number.checked_sub(1).is_some_and(|n| lines[n].trim_start().starts_with("//"));
                let said = above || line.contains("//") || line.contains("reason =");
                assert!(said, "{}:{}: say why unsafe is needed", file.display(), number + 1);
            }
        }
    }
}

/// Whether a file is marked as one that may do I/O.
fn does_io(file: &Path) -> bool {
    fs::read_to_string(file).expect("a source file").lines().next() == Some(DOES_IO)
}

/// The entry of [`FORBIDDEN`] that a path names.
fn forbidden(path: &[String]) -> Option<&'static [&'static str]> {
    FORBIDDEN.iter().copied().find(|entry| path.windows(entry.len()).any(|part| part == *entry))
}

/// Every `.rs` file below `directory`, without files of tests.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}
