//! The house of ARCHITECTURE.md, held against the code: arrows between crates, cores without I/O, and who may name
//! a hypervisor's world.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// "May import": what each crate may depend on, of ours. Anything else is an error.
const ARROWS: &[(&str, &[&str])] = &[
    ("ring-abi", &[]),
    ("event-loop", &[]),
    ("bridge", &[]),
    ("hypervisor", &["event-loop", "ring-abi"]),
    ("xenstore", &["event-loop", "ring-abi"]),
    ("grant-table", &["hypervisor", "ring-abi"]),
    ("event-channel", &["event-loop", "hypervisor", "ring-abi"]),
    ("blkback", DRIVER),
    ("blkfront", DRIVER),
    ("netfront", DRIVER),
    ("netback", &["bridge", "event-channel", "grant-table", "hypervisor", "ring-abi", "xenstore"]),
    ("toolstack", ALL),
    ("testkit", TESTKIT),
    ("benches", BENCHES),
];
const DRIVER: &[&str] = &["event-channel", "grant-table", "hypervisor", "ring-abi", "xenstore"];
const ALL: &[&str] = &[
    "blkback",
    "blkfront",
    "bridge",
    "event-channel",
    "event-loop",
    "grant-table",
    "hypervisor",
    "netback",
    "netfront",
    "ring-abi",
    "xenstore",
];

/// What `testkit` imports: `toolstack` for the nodes that libxl writes of a device.
const TESTKIT: &[&str] = &[
    "blkback",
    "blkfront",
    "bridge",
    "hypervisor",
    "netback",
    "netfront",
    "ring-abi",
    "toolstack",
    "xenstore",
];
/// What `benches` imports: the only crate that names `testkit` other than for its tests.
const BENCHES: &[&str] = &[
    "blkback",
    "blkfront",
    "bridge",
    "event-channel",
    "hypervisor",
    "netback",
    "netfront",
    "ring-abi",
    "testkit",
    "xenstore",
];

/// Files that are cores: protocols as values. A directory stands for all below it but what is named after the colon.
const CORES: &[&str] = &[
    "ring-abi/src:",
    "event-loop/src/token_bucket.rs",
    "blkback/src/queue.rs",
    "blkback/src/check.rs",
    "blkback/src/order.rs",
    "blkback/src/handshake.rs",
    "blkfront/src/queue.rs",
    "blkfront/src/table.rs",
    "blkfront/src/split.rs",
    "blkfront/src/handshake.rs",
    "netback/src/tx.rs",
    "netback/src/rx.rs",
    "netback/src/logged_ring.rs",
    "netback/src/assemble.rs",
    "netback/src/handshake.rs",
    "netfront/src/tx.rs",
    "netfront/src/rx.rs",
    "netfront/src/handshake.rs",
    "bridge/src/fdb.rs",
    "bridge/src/switch.rs",
    "xenstore/src/server:run",
];

/// What a core never names: the world, and time.
const FORBIDDEN: &[&[&str]] = &[
    &["hypervisor"],
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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's directory").to_owned()
}

#[test]
fn crates_import_only_along_the_arrows() {
    let metadata =
        cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec().expect("cargo metadata");
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let names: BTreeSet<_> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    assert_eq!(names, arrows.keys().map(|n| n.to_string()).collect(), "the crates of the house");
    for package in &metadata.packages {
        let allowed = arrows[package.name.as_str()];
        for dependency in &package.dependencies {
            let ours = names.contains(&dependency.name);
            let for_tests = dependency.kind == cargo_metadata::DependencyKind::Development;
            assert!(
                !ours || for_tests || allowed.contains(&dependency.name.as_str()),
                "{} imports {}: only {allowed:?} are allowed",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn cores_do_no_io_and_read_no_clock() {
    let mut wrong = Vec::new();
    for core in CORES {
        for file in core_files(core) {
            for path in paths_of(&file) {
                let hit = FORBIDDEN.iter().find(|f| path.windows(f.len()).any(|w| w == **f));
                // `core::` types whose names merely look alike are not reached: paths start at a crate or a type.
                if let Some(hit) = hit {
                    wrong.push(format!("{}: {} (in {})", file.display(), hit.join("::"), path.join("::")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "cores must stay values:\n{}", wrong.join("\n"));
}

#[test]
fn only_programs_and_tests_name_a_world() {
    let mut wrong = Vec::new();
    let may = ["toolstack", "testkit", "benches", "hypervisor"];
    for (name, _) in ARROWS.iter().filter(|(name, _)| !may.contains(name)) {
        for file in sources(&root().join(name).join("src")) {
            for path in paths_of(&file) {
                let names_world = |w: &[String]| w[0] == "hypervisor" && (w[1] == "local" || w[1] == "xen");
                if path.windows(2).any(names_world) {
                    wrong.push(format!("{}: {}", file.display(), path.join("::")));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "only toolstack, testkit, benches and tests may name local or xen:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn unsafe_is_allowed_only_with_a_reason() {
    for (name, _) in ARROWS {
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

/// The files that an entry of [`CORES`] names; each must exist, so that the list cannot go stale.
fn core_files(entry: &str) -> Vec<PathBuf> {
    let Some((directory, except)) = entry.split_once(':') else {
        let file = root().join(entry);
        assert!(file.exists(), "{entry}: no such core; mend the list");
        return vec![file];
    };
    let files = sources(&root().join(directory));
    assert!(!files.is_empty(), "{directory}: no such core; mend the list");
    let keep = |f: &PathBuf| !f.components().any(|c| c.as_os_str() == except);
    files.into_iter().filter(keep).collect()
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

/// Every path that a file names outside `#[cfg(test)]`, `use` trees flattened.
fn paths_of(file: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(file).expect("a source file");
    let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut paths = Paths::default();
    paths.visit_file(&parsed);
    paths.0
}

#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl Paths {
    fn tree(&mut self, tree: &syn::UseTree, prefix: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(p) => {
                prefix.push(p.ident.to_string());
                self.tree(&p.tree, prefix);
                prefix.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|t| self.tree(t, prefix)),
            syn::UseTree::Name(n) => self.0.push([prefix.clone(), vec![n.ident.to_string()]].concat()),
            syn::UseTree::Rename(n) => self.0.push([prefix.clone(), vec![n.ident.to_string()]].concat()),
            syn::UseTree::Glob(_) => self.0.push(prefix.clone()),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !for_tests(&item.attrs) {
            self.tree(&item.tree, &mut Vec::new());
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.push(path.segments.iter().map(|s| s.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

/// `#[cfg(test)]`, `#[cfg(all(test, ..))]` or a feature that only tests turn on.
fn for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| {
        let list = a.path().is_ident("cfg").then(|| a.meta.require_list().ok()).flatten();
        list.is_some_and(|l| l.tokens.to_string().split(|c: char| !c.is_alphanumeric()).any(|w| w == "test"))
    })
}
