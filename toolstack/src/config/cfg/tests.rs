//! Examples, errors, and round trips.

use super::*;
use proptest::prelude::*;
use std::path::Path;

fn origin() -> Origin {
    Origin::file(Path::new("g.cfg"))
}

fn one(key: &str, line: usize, text: &str) -> Setting {
    Setting { key: key.into(), line, value: Value::Single(text.into()) }
}

fn list(key: &str, line: usize, atoms: &[(&str, usize)]) -> Setting {
    let atoms = atoms.iter().map(|&(text, line)| Atom { text: text.into(), line }).collect();
    Setting { key: key.into(), line, value: Value::List(atoms) }
}

#[test]
fn settings_lists_and_comments_are_parsed() {
    let text = r#"
# a guest
name = "web"; memory = 512   # in MiB
vcpus=0x2
disk = [
    '/img/a,raw,xvda,rw',   # root
    "target=/img/b;c#d",
]
vif = [ '' ]
empty = []
"#;
    let expected = vec![
        one("name", 3, "web"),
        one("memory", 3, "512"),
        one("vcpus", 4, "0x2"),
        list("disk", 5, &[("/img/a,raw,xvda,rw", 6), ("target=/img/b;c#d", 7)]),
        list("vif", 9, &[("", 9)]),
        list("empty", 10, &[]),
    ];
    assert_eq!(parse(&origin(), text).unwrap(), expected);
    assert_eq!(parse(&origin(), "a='\\'\\\\\\n'").unwrap(), [one("a", 1, "'\\\n")]);
    assert_eq!(parse(&origin(), "a=1\r\nb=2 # end").unwrap(), [one("a", 1, "1"), one("b", 2, "2")]);
}

#[test]
fn syntax_error_names_line_key_found_and_expected() {
    let cases = [
        ("\nname web", r#"g.cfg:2: name: found "web", expected ="#),
        ("name = web", r#"found "web", expected a string in quotes"#),
        ("name = 'web", r#"g.cfg:1: syntax: found "'web", expected a closing '"#),
        ("name = 'a' 'b'", r#"g.cfg:1: name: found "b", expected the end of the line"#),
        ("disk = [ 'a'\n'b' ]", r#"g.cfg:2: disk: found "b", expected , or ]"#),
        (
            "disk = [ 'a',",
            r#"disk: found "the end of the file", expected a string in quotes, a number, or ]"#,
        ),
        ("disk = [ ['a'] ]", r#"found "[", expected"#),
        ("name = 'a' + 'b'", r#"found "+", expected"#),
        ("= 3", r#"syntax: found "=", expected a key"#),
        ("a=1\nb=2\na=3", r#"g.cfg:3: a: found "the key again", expected it once (line 1 sets it already)"#),
        (r"a='\q'", r#"found "\\q", expected one of"#),
    ];
    for (text, part) in cases {
        let error = parse(&origin(), text).unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

/// Quotes and escapes a string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out + "\""
}

fn atoms() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[ -~\n\u{e9}]{0,20}", 0..5)
}

proptest! {
    #[test]
fn quoted_settings_parse_to_the_same_values(one_text in "[ -~\n]{0,30}", many in atoms(), broken in any::<bool>()) {
        let separator = if broken { ",\n # c\n" } else { "," };
        let items = many.iter().map(|t| quoted(t)).collect::<Vec<_>>().join(separator);
        let text = format!("one={}\nmany = [{items}]", quoted(&one_text));
        let settings = parse(&origin(), &text).unwrap();
        prop_assert_eq!(&settings[0].value, &Value::Single(one_text));
        let Value::List(read) = &settings[1].value else { panic!("not a list") };
        let read: Vec<_> = read.iter().map(|a| a.text.clone()).collect();
        prop_assert_eq!(read, many);
    }

    #[test]
fn arbitrary_text_never_panics_and_errors_name_a_line_of_the_file(text in "[a-c='\"\\[\\], ;#\n\\\\0-9]{0,60}") {
        if let Err(crate::error::Error::Input { origin, .. }) = parse(&origin(), &text) {
            let shown = origin.to_string();
            let line: usize = shown.rsplit(':').next().unwrap().parse().unwrap();
            prop_assert!(line >= 1 && line <= text.lines().count().max(1) + 1);
        }
    }
}
