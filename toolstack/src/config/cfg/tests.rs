//! Examples, errors, and round trips.

use super::*;
use proptest::prelude::*;
use std::path::Path;

fn origin() -> Origin {
    Origin::file(Path::new("g.cfg"))
}

fn one(key: &str, line: usize, text: &str) -> Setting {
    setting(key, line, Value::Single(text.into()))
}

fn setting(key: &str, line: usize, value: Value) -> Setting {
    Setting { key: key.into(), origin: origin().at(line), appends: false, value }
}

fn list(key: &str, line: usize, items: &[(&str, usize)]) -> Setting {
    setting(key, line, Value::List(items.iter().map(|(text, line)| item(*line, text)).collect()))
}

fn item(line: usize, text: &str) -> Item {
    Item { origin: origin().at(line), value: Value::Single(text.into()) }
}

/// Parses a text, and applies its settings to each other.
fn settled(text: &str) -> Result<(Vec<Setting>, Warnings)> {
    let mut settings = Vec::new();
    let mut warnings = Warnings::default();
    for setting in parse(&origin(), text)? {
        apply(&mut settings, setting, &mut warnings)?;
    }
    Ok((settings, warnings))
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
    assert_eq!(parse(&origin(), r"a='\r\a\b\f\v'").unwrap(), [one("a", 1, "\r\u{7}\u{8}\u{c}\u{b}")]);
    assert_eq!(parse(&origin(), "\u{feff}a.b=1").unwrap(), [one("a.b", 1, "1")]);
    assert_eq!(parse(&origin(), "a=1\r\nb=2 # end").unwrap(), [one("a", 1, "1"), one("b", 2, "2")]);
}

#[test]
fn syntax_error_names_line_key_found_and_expected() {
    let cases = [
        ("\nname web", r#"g.cfg:2: name: found "web", expected = or +="#),
        ("name = web", r#"found "web", expected a string in quotes"#),
        ("name = 'web", r#"g.cfg:1: syntax: found "'web", expected a closing '"#),
        ("name = 'a' 'b'", r#"g.cfg:1: name: found "b", expected the end of the line"#),
        ("disk = [ 'a'\n'b' ]", r#"g.cfg:2: disk: found "b", expected , or ]"#),
        (
            "disk = [ 'a',",
            r#"disk: found "the end of the file", expected a string in quotes, a number, or ]"#,
        ),
        ("name = 'a' + 'b'", r#"found "+", expected"#),
        ("= 3", r#"syntax: found "=", expected a key"#),
        (r"a='\q'", r#"found "\\q", expected one of"#),
    ];
    for (text, part) in cases {
        let error = parse(&origin(), text).unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn lists_may_be_nested_but_not_without_end() {
    let settings = parse(&origin(), "vnuma = [ ['pnode=0', 'size=1'],\n ['pnode=1'] ]").unwrap();
    let Value::List(nodes) = &settings[0].value else { panic!("{settings:?}") };
    assert_eq!(nodes[1].origin, origin().at(2));
    assert_eq!(nodes[0].value, Value::List(vec![item(1, "pnode=0"), item(1, "size=1")]));
    let error = parse(&origin(), &format!("a={}", "[".repeat(100_000))).unwrap_err();
    assert!(error.to_string().contains("lists in lists"), "{error}");
}

#[test]
fn last_setting_of_a_key_holds_and_what_is_lost_is_said() {
    let (settings, warnings) = settled("disk=['a']\nname='x'\ndisk=['b']").unwrap();
    assert_eq!(settings, [list("disk", 3, &[("b", 3)]), one("name", 2, "x")]);
    assert_eq!(warnings.line().unwrap(), "g.cfg: set again: disk (line 3; what line 1 says is lost)");
}

#[test]
fn appended_value_follows_the_earlier_one_of_its_kind() {
    let (settings, warnings) =
        settled("disk=['a']\ndisk+=['b', 'c']\nextra='x'\nextra+=' y'\nnew+=['z']").unwrap();
    assert_eq!(settings[0], list("disk", 1, &[("a", 1), ("b", 2), ("c", 2)]));
    assert_eq!(settings[1], one("extra", 3, "x y"));
    assert_eq!(settings[2].value, list("new", 5, &[("z", 5)]).value);
    assert_eq!(warnings, Warnings::default());
    let error = settled("disk=['a']\ndisk+='b'").unwrap_err().to_string();
    assert!(error.contains(r#"g.cfg:2: disk: found "+= a string", expected a list"#), "{error}");
    assert!(settled("name='a'\nname+=['b']").is_err());
}

#[test]
fn python_is_said_to_be_python_and_other_errors_are_not() {
    for text in [
        "import os, re",
        "arch = os.uname()[4]",
        "if 1:\n  a=2",
        "def f():",
        "device_model = '/usr/' + libdir + '/qemu-dm'",
        "name = 'vm%d' % vmid",
        "a = 1\nmemory = int(512)",
    ] {
        let error = parse(&origin(), text).unwrap_err().to_string();
        assert!(error.contains("this looks like Python"), "{text:?}: {error}");
    }
    for text in
        ["name = web", "name 'a'", "disk = [ 'phy:/dev/x (a)'", "vif = [ 'mac=00:16:3e:00:00:01' 'b' ]"]
    {
        let error = parse(&origin(), text).unwrap_err().to_string();
        assert!(!error.contains("Python"), "{text:?}: {error}");
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
        let read: Vec<_> = read.iter().map(|item| item.value.clone()).collect();
        prop_assert_eq!(read, many.into_iter().map(Value::Single).collect::<Vec<_>>());
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
