//! What users of xl do: one configuration for both worlds, settings on the command line, several domains in a list, names with
//! blanks.

mod common;

use common::{Machine, texts};
use serde_json::Value;

const MIB: u64 = 1 << 20;

#[test]
fn configuration_of_xl_serves_here_too_and_one_line_names_what_has_no_effect() {
    let machine = Machine::new();
    let image = machine.image("a.img", MIB);
    let cfg = format!(
        "name = 'web'\r\nmemory = 512\r\ndevice_model = 'qemu-dm'\r\nvnuma = [['pnode=0']]\r\nmemroy = 1\r\n\
         disk = ['format=raw,vdev=xvda,access=rw,script=/bin/true,target={}']\r\n\
         vif = ['type=ioemu,script=/bin/true,mac=0:16:3e:1:2:3']\r\nextra = '\\r'\r\nextra += 'x'",
        image.display()
    );
    let path = machine.file("web.cfg", &cfg);
    let output = machine.xpv(["create".as_ref(), path.as_os_str()]);
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stdout, "web is domain 1\n");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in
        ["memroy (line 5; did you mean memory?)", "memory (line 2)", "disk: script (line 6; ", "device_model"]
    {
        assert!(stderr.contains(part), "{stderr}");
    }
    let list: Value = serde_json::from_str(&machine.ok(["network-list", "--json", "web"])).unwrap();
    assert_eq!(list[0]["mac"], "00:16:3e:01:02:03");
}

#[test]
fn settings_of_the_command_line_replace_those_of_the_file() {
    let machine = Machine::new();
    let cfg = machine.file("web.cfg", "name = 'web'\nmemory = 128\n");
    let cfg = cfg.to_str().unwrap();
    let image = machine.image("a.img", MIB);
    machine.ok(["create", cfg]);
    machine.ok(["create", cfg, "name='web2'; memory=512", &format!("disk=['{},,xvda']", image.display())]);
    let disks: Value = serde_json::from_str(&machine.ok(["block-list", "--json", "web2"])).unwrap();
    assert_eq!(disks.as_array().unwrap().len(), 1);
    let error = machine.fails(["create", cfg, "name=web3"]);
    assert!(error.contains(r#"name=web3: name: found "web3", expected a string in quotes"#), "{error}");
}

#[test]
fn lists_take_several_domains_by_name_and_number() {
    let machine = Machine::new();
    for name in ["a", "b"] {
        let image = machine.image(&format!("{name}.img"), MIB);
        machine.create(name, &format!("disk=['{},,xvda']\nvif=['']", image.display()));
    }
    for command in ["block-list", "network-list"] {
        let list: Value = serde_json::from_str(&machine.ok([command, "--json", "b", "1"])).unwrap();
        let domids: Vec<_> =
            list.as_array().unwrap().iter().map(|row| row["domid"].as_u64().unwrap()).collect();
        assert_eq!(domids, [2, 1], "{command}");
        assert_eq!(machine.ok([command, "a", "b"]).lines().count(), 3, "{command}");
        let error = machine.fails([command, "a", "nobody"]);
        assert!(error.contains("there is no domain \"nobody\""), "{error}");
    }
}

#[test]
fn guest_with_any_name_that_xl_takes_is_created_listed_and_destroyed() {
    let machine = Machine::new();
    for name in ["my guest", "-x", "win:10", "\u{e9}"] {
        let image = machine.image("a.img", MIB);
        let disk = format!("disk=['{},,xvda']", image.display());
        let cfg = machine.file("any.cfg", &format!("name='{name}'\n{disk}"));
        machine.ok(["create".as_ref(), cfg.as_os_str()]);
        assert!(machine.dir().join(name).join("xvda.nbd").exists());
        let list: Value = serde_json::from_str(&machine.ok(["block-list", "--json", "--", name])).unwrap();
        assert_eq!(list[0]["state"], 4, "{name}");
        machine.ok(["destroy", "--", name]);
    }
}
