//! Whole files: what is taken of them, what is warned of, and what is refused.

use super::*;

fn parse(text: &str) -> Result<GuestConfig> {
    GuestConfig::parse(&Origin::file(Path::new("g.cfg")), text, &[])
}

#[test]
fn xl_cfg_with_disks_and_vifs_is_parsed() {
    let guest = parse(
        "name = 'web'\nmemory = 512\nkernel = '/boot/vmlinuz'\n\
         disk = [ '/img/root,raw,xvda,rw',\n 'vdev=xvdb,access=ro,target=/img/data' ]\n\
         vif = [ 'mac=00:16:3e:00:00:01', '', 'devid=7,bridge=br1' ]\n",
    )
    .unwrap();
    assert_eq!(guest.name, "web");
    let disks: Vec<_> = guest.disks.iter().map(|d| (d.dev.as_str(), d.vdev, d.writable)).collect();
    assert_eq!(disks, [("xvda", 51712, true), ("xvdb", 51728, false)]);
    let vifs: Vec<_> = guest.vifs.iter().map(|v| (v.devid.unwrap(), v.bridge.as_str())).collect();
    assert_eq!(vifs, [(0, "xenbr0"), (1, "xenbr0"), (7, "br1")]);
    let expected = "g.cfg: no effect, as a guest here is a process: memory (line 2), kernel (line 3)";
    assert_eq!(guest.warnings.line().unwrap(), expected);
}

#[test]
fn user_of_a_guest_is_a_number_and_not_root() {
    let uid =
        |value: &str| parse(&format!("name = 'a'\nuid = {value}")).map(|guest| guest.uid.unwrap().value);
    assert_eq!((uid("1000").unwrap(), uid("'4294967294'").unwrap()), (1000, u32::MAX - 1));
    for value in ["0", "'web'", "4294967295", "'-1'"] {
        let error = uid(value).unwrap_err().to_string();
        assert!(error.starts_with("g.cfg:2: uid: found ") && error.contains("who is not root"), "{error}");
    }
    assert!(uid("[1]").unwrap_err().to_string().contains("expected a user's number"));
    assert_eq!(parse("name = 'a'").unwrap().uid, None);
}

#[test]
fn what_xl_ignores_is_named_in_one_line() {
    let guest = parse(
        "name = 'web'\r\ndevice_model = 'qemu-dm'\r\nvnuma = [['pnode=0', 'size=1']]\r\nmemroy = 1\r\nne2000 = 0\r\n\
         vif = [ 'type=ioemu, bridge=br0, vlna=3' ]\r\nvif += [ '' ]\r\nvif = [ 'model=e1000' ]\r\nfoo.bar = 3",
    )
    .unwrap();
    assert_eq!(guest.vifs.len(), 1);
    let line = guest.warnings.line().unwrap();
    assert_eq!(
        line,
        "g.cfg: unknown: memroy (line 4; did you mean memory?), ne2000 (line 5), foo.bar (line 9); \
         set again: vif (line 8; what line 6 says is lost); \
         no effect: vif: model (line 8; there are no emulated interfaces); \
         no effect, as a guest here is a process: device_model (line 2), vnuma (line 3)"
    );
}

#[test]
fn typing_error_in_a_vif_is_warned_of_as_xl_does() {
    let guest = parse("name = 'a'\nvif = ['birdge=br1', 'colour=red']").unwrap();
    let line = guest.warnings.line().unwrap();
    assert_eq!(
        line,
        "g.cfg: unknown: vif: birdge=br1 (line 2; did you mean bridge?), vif: colour=red (line 2)"
    );
}

#[test]
fn settings_of_the_command_line_replace_those_of_the_file() {
    let origin = Origin::file(Path::new("g.cfg"));
    let overrides = ["name='other'; memory=512", "disk+=['/b,,xvdb']"].map(str::to_owned);
    let text = "name='web'\nmemory=1\ndisk=['/a,,xvda']";
    let guest = GuestConfig::parse(&origin, text, &overrides).unwrap();
    assert_eq!((guest.name.as_str(), guest.disks.len()), ("other", 2));
    let line = guest.warnings.line().unwrap();
    let expected = "name='other'; memory=512: no effect, as a guest here is a process: memory";
    assert_eq!(line, expected);
    let error = GuestConfig::parse(&origin, text, &["memory=x".to_owned()]).unwrap_err().to_string();
    assert!(error.starts_with(r#"memory=x: memory: found "x", expected"#), "{error}");
}

#[test]
fn names_of_xl_are_taken_unless_they_cannot_name_a_directory_or_a_domain() {
    for name in ["web", "a b", "win:10", "-x", ".hidden", "\u{e9}t\u{e9}", "7up", "a@b(c)"] {
        assert_eq!(parse(&format!("name = '{name}'")).unwrap().name, name);
    }
    for name in ["", "..", ".", "a/b", "7", "a\\nb"] {
        let error = parse(&format!("name = '{name}'")).unwrap_err().to_string();
        assert!(error.starts_with("g.cfg:1: name: found"), "{error}");
    }
}

#[test]
fn invalid_item_is_rejected_with_its_line() {
    let cases = [
        ("name = 'a'\ndisk = [\n'/a,,xvda',\n'/b,,xvda,rx' ]", r#"g.cfg:4: disk: access: found "rx""#),
        (
            "name = 'a'\ndisk = [ '/a,,xvda',\n'/b,,d0p0' ]",
            r#"g.cfg:3: disk: vdev: found "d0p0", expected a dev"#,
        ),
        (
            "name = 'a'\ndisk = [ '/a,,xvda,vdev=xvda' ]",
            r#"g.cfg:2: disk: vdev: found "xvda", expected it once"#,
        ),
        ("disk = '/a,,xvda'", r#"g.cfg:1: disk: found "one value", expected a list"#),
        (
            "name = 'a'\ndisk = [ ['/a,,xvda'] ]",
            r#"g.cfg:2: disk: found "a list in the list", expected a string"#,
        ),
        ("disk = []", "g.cfg: name: missing, expected the guest's name"),
        ("name = 'a'\nvif = ['devid=1', '']", r#"g.cfg:2: vif: devid: found "1""#),
        ("name = 'a'\nvif = ['mac=00:16:3e:0:0']", "g.cfg:2: vif: mac: found"),
        ("name = ['a']", r#"g.cfg:1: name: found "a list", expected a name"#),
        ("nmae = 'a'", "name: missing, expected the guest's name; g.cfg:1 sets nmae, did you mean name?"),
    ];
    for (text, part) in cases {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}
