//! The lines of docs/networks.md, as an administrator types them.

mod common;

use common::Machine;

/// The words of a line, of which one in single quotes may have blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_ascii_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

#[test]
fn lines_of_the_page_on_networks_do_what_they_say() {
    let machine = Machine::new();
    machine.create("web", "vif = ['mac=00:16:3e:00:00:01']");
    let page = include_str!("../../docs/networks.md");
    let lines: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("$ xpv ")).collect();
    assert!(lines.len() >= 5, "{lines:?}");
    for line in &lines {
        machine.ok(words(line));
    }
    let nodes = machine.nodes();
    let of = |devid: &str, key: &str| {
        let end = format!("/{devid}/{key}");
        let found = nodes.iter().find(|(path, _)| path.contains("/backend/vif/") && path.ends_with(&end));
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!((of("1", "ip"), of("1", "lock")), (Some("10.0.0.5 2001:db8:1::/64"), None));
    assert_eq!((of("2", "ip"), of("2", "lock")), (None, Some("off")));
    assert_eq!((of("0", "ip"), of("0", "lock")), (None, None), "the default again");
}
