//! Checks that the modules of a crate that are siblings do not need each other in a circle: then each can be read, tested
//! and moved with those below it alone.
//!
//! Modules are siblings if they have the same parent. A path anywhere below the sibling `a` that leads to something
//! below the sibling `b` is an edge `a -> b`. It leads to the module that has the item, whatever re-exports it is named
//! by: `crate::Stats` is an edge to `stats`, if `lib.rs` says `pub use stats::Stats`. Paths in `#[cfg(test)]` do not count.
//!
//! A parent is above and below its children at once: it declares and uses them, and they may use what it defines itself (a
//! trait in `mod.rs` that each of them implements). Edges between a parent and its child are therefore no part of a circle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use crate::module_tree::{ModulePath, ModuleTree};
use crate::source::{packages, root};

/// Edges between siblings, each with the first line that it is due to.
type Edges = BTreeMap<(String, String), String>;

#[test]
fn siblings_of_every_crate_need_each_other_in_no_circle() {
    let mut found = Vec::new();
    for package in packages() {
        for target in package.targets.iter().filter(|target| target.is_lib() || target.is_bin()) {
            let tree =
                ModuleTree::read(target.src_path.as_std_path(), &|file| std::fs::read_to_string(file).ok());
            found.extend(circles(&package.name, &tree));
        }
    }
    assert!(found.is_empty(), "modules that need each other:\n{}", found.join("\n"));
}

/// The circles of a crate, each as a line of text.
fn circles(name: &str, tree: &ModuleTree) -> Vec<String> {
    let mut lines = Vec::new();
    for (parent, edges) in sibling_edges(tree) {
        let title = [&[name.to_owned()], &parent[..]].concat().join("::");
        let circles: BTreeSet<_> = edges.keys().filter_map(|edge| shortest_circle(&edges, edge)).collect();
        lines.extend(circles.iter().map(|circle| format!("{title}: {}", describe(&edges, circle))));
    }
    lines
}

/// The edges between siblings, for each parent.
fn sibling_edges(tree: &ModuleTree) -> BTreeMap<ModulePath, Edges> {
    let mut all: BTreeMap<ModulePath, Edges> = BTreeMap::new();
    for reference in tree.references() {
        let common = reference.from.iter().zip(&reference.to).take_while(|(one, other)| one == other).count();
        let Some(from) = reference.from.get(common) else { continue };
        let Some(to) = reference.to.get(common) else { continue };
        let file = reference.file.strip_prefix(root()).unwrap_or(reference.file).display();
        let path = reference.named.path.join("::");
        let line = format!("{file}:{} names {path}", reference.named.line);
        let edges = all.entry(reference.from[..common].to_vec()).or_default();
        edges.entry((from.clone(), to.clone())).or_insert(line);
    }
    all
}

/// The shortest circle with this edge, from the module on that is first by its name.
fn shortest_circle(edges: &Edges, (from, to): &(String, String)) -> Option<Vec<String>> {
    let mut came_from = BTreeMap::from([(to, None)]);
    let mut queue = VecDeque::from([to]);
    while let Some(at) = queue.pop_front().filter(|at| *at != from) {
        for (_, next) in edges.keys().filter(|(one, _)| one == at) {
            came_from.entry(next).or_insert_with(|| {
                queue.push_back(next);
                Some(at)
            });
        }
    }
    came_from.get(from)?;
    let mut circle: Vec<_> = std::iter::successors(Some(from), |at| came_from[at]).cloned().collect();
    circle.reverse();
    let first = (0..circle.len()).min_by_key(|at| &circle[*at])?;
    circle.rotate_left(first);
    Some(circle)
}

/// `a -> b (FILE:LINE names PATH) -> a (FILE:LINE names PATH)`.
fn describe(edges: &Edges, circle: &[String]) -> String {
    let next = circle.iter().cycle().skip(1);
    let steps = circle.iter().zip(next).map(|(from, to)| {
        let line = &edges[&(from.clone(), to.clone())];
        format!(" -> {to} ({line})")
    });
    format!("{}{}", circle[0], steps.collect::<String>())
}

/// The circles of a crate whose files are given by name and text.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let read =
        |path: &Path| files.iter().find(|file| path == Path::new(file.0)).map(|file| file.1.to_owned());
    circles("made_up", &ModuleTree::read(Path::new("src/lib.rs"), &read))
}

#[test]
fn siblings_that_import_each_other_are_a_circle() {
    let found = circles_of(&[
        ("src/lib.rs", "mod a;\nmod b;"),
        ("src/a.rs", "use std::fmt;\nuse crate::b::B;\npub struct A;"),
        ("src/b.rs", "use super::{\n    a::{self, A},\n};\npub struct B;"),
    ]);
    assert_eq!(found, ["made_up: a -> b (src/a.rs:2 names crate::b::B) -> a (src/b.rs:2 names super::a)"]);
}

#[test]
fn circle_through_re_exports_macros_and_globs_is_found() {
    let found = circles_of(&[
        ("src/lib.rs", "mod a; mod b; mod c; mod facade; pub use b::B as Named;"),
        ("src/a.rs", "pub struct A(crate::Named);"),
        ("src/b.rs", "use crate::facade::*;\npub struct B; fn f() { C::f() }"),
        ("src/facade.rs", "pub use crate::c::C;"),
        ("src/c.rs", "pub struct C; fn f() { assert!(!crate::a::A::is_empty()) }"),
    ]);
    let start = "made_up: a -> b (src/a.rs:1 names crate::Named)";
    let facade = "facade (src/b.rs:1 names crate::facade) -> c (src/facade.rs:1 names crate::c::C)";
    let end = "a (src/c.rs:1 names crate::a::A::is_empty)";
    let circle = format!("{start} -> c (src/b.rs:2 names C::f) -> {end}");
    assert_eq!(found, [circle, format!("{start} -> {facade} -> {end}")]);
}

#[test]
fn circle_of_modules_below_siblings_is_found() {
    let found = circles_of(&[
        ("src/lib.rs", "mod outer;"),
        ("src/outer/mod.rs", "mod a; mod b { pub mod inner { use super::super::a::A; pub struct B; } }"),
        ("src/outer/a.rs", "mod below; pub struct A;"),
        ("src/outer/a/below.rs", "use crate::outer::b::inner::B;"),
    ]);
    let back = "a (src/outer/mod.rs:1 names super::super::a::A)";
    let line = format!("a -> b (src/outer/a/below.rs:1 names crate::outer::b::inner::B) -> {back}");
    assert_eq!(found, [format!("made_up::outer: {line}")]);
}

#[test]
fn parents_chains_and_tests_are_no_circle() {
    let found = circles_of(&[
        ("src/lib.rs", "mod a; mod b; mod c; pub struct Own(a::A); pub use a::A;"),
        ("src/a.rs", "use crate::Own; use crate::b::B; use crate::c::C; pub struct A;"),
        ("src/b.rs", "use super::c::C; pub struct B; #[cfg(test)] mod tests { use crate::a::A; }"),
        ("src/c.rs", "pub struct C; impl C { #[cfg(test)] fn a() -> crate::A { crate::A } }"),
    ]);
    assert_eq!(found, [""; 0]);
}

#[test]
fn circle_by_code_is_found_unless_it_is_only_for_tests() {
    let circles_if = |condition: &str| {
        let needs_b = format!("#[cfg({condition})] use crate::b::B; pub struct A;");
        let b = "use crate::a::A; pub struct B;";
        circles_of(&[("src/lib.rs", "mod a; mod b;"), ("src/a.rs", &needs_b), ("src/b.rs", b)]).len()
    };
    for condition in ["not(test)", "any(test, unix)", "all(unix, not(test))", "feature = \"test\""] {
        assert_eq!(circles_if(condition), 1, "{condition}");
    }
    for condition in ["test", "all(test, unix)", "any(test, fuzzing)", "all(unix, any(test, fuzzing))"] {
        assert_eq!(circles_if(condition), 0, "{condition}");
    }
}
