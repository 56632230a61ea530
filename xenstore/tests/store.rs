//! The client with a running store.

mod common;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Running, event, events};
use xenstore::server::{Config, Image, Store};
use xenstore::{Access, Client, DomId, Error, Nodes, Permission, XsError};

fn err<T: std::fmt::Debug>(result: Result<T, Error>) -> XsError {
    let error = result.unwrap_err();
    error.store_error().unwrap_or_else(|| panic!("not an error reply: {error}"))
}

#[test]
fn nodes_are_written_listed_and_removed() {
    let running = Running::new();
    let mut dom0 = running.dom0();
    dom0.write("/a/b/c", "1").unwrap();
    dom0.mkdir("/a/d").unwrap();
    assert_eq!(dom0.read("/a/b").unwrap(), b"");
    assert_eq!(dom0.read_as::<u32>("/a/b/c").unwrap(), 1);
    assert_eq!(dom0.directory("/a").unwrap(), ["b", "d"]);
    assert_eq!(dom0.directory("/").unwrap(), ["a", "tool"]);
    dom0.write("/a/bin", [0, 255, 0]).unwrap();
    assert_eq!(dom0.read("/a/bin").unwrap(), [0, 255, 0]);
    dom0.rm("/a").unwrap();
    assert_eq!(dom0.read_opt("/a/b").unwrap(), None);
    dom0.rm("/a").unwrap();
    assert_eq!(err(dom0.rm("/a/b")), XsError::ENOENT);
    assert_eq!(err(dom0.rm("/")), XsError::EINVAL);
    assert_eq!(err(dom0.read("/a//b")), XsError::EINVAL);
}

#[test]
fn malformed_value_is_named_in_the_error() {
    let mut dom0 = Running::new().store.client().unwrap();
    // The store above is dropped.
    assert!(matches!(dom0.write("/n", "x"), Err(Error::Closed)));
    let running = Running::new();
    let mut dom0 = running.store.client().unwrap();
    dom0.write("/n", "four").unwrap();
    let text = dom0.read_as::<u32>("/n").unwrap_err().to_string();
    assert_eq!(text, r#"xenstore node "/n": found "four", expected u32"#);
    assert!(matches!(dom0.write("/n", vec![b'x'; 4096]), Err(Error::Request { .. })));
    assert!(matches!(dom0.read("/n\0"), Err(Error::Request { .. })));
}

#[test]
fn guest_access_follows_permissions() {
    let running = Running::new();
    let mut dom0 = running.dom0();
    let mut one = running.domain(1);
    let mut two = running.domain(2);
    dom0.write("/local/domain/1/name", "one").unwrap();
    assert_eq!(err(one.read("name")), XsError::EACCES);
    assert_eq!(err(one.read("missing")), XsError::EACCES);
    let home = [Permission::new(DomId(1), Access::None)];
    dom0.set_perms("/local/domain/1", &home).unwrap();
    one.write("data/x", "mine").unwrap();
    assert_eq!(one.get_perms("data/x").unwrap(), home);
    assert_eq!(err(one.read("missing")), XsError::ENOENT);
    assert_eq!(err(two.read("/local/domain/1/data/x")), XsError::EACCES);
    one.set_perms("data/x", &[home[0], Permission::new(DomId(2), Access::Read)]).unwrap();
    assert_eq!(two.read("/local/domain/1/data/x").unwrap(), b"mine");
    assert_eq!(err(two.write("/local/domain/1/data/x", "his")), XsError::EACCES);
    assert_eq!(err(one.set_perms("data/x", &[Permission::new(DomId(2), Access::Both)])), XsError::EPERM);
    assert_eq!(err(two.set_perms("/local/domain/1/data/x", &home)), XsError::EACCES);
    assert_eq!(err(one.introduce(DomId(3), 1, 1)), XsError::EACCES);
    assert_eq!(err(one.control(&["help"])), XsError::EACCES);
    dom0.set_target(DomId(2), DomId(1)).unwrap();
    two.write("/local/domain/1/data/x", "for him").unwrap();
}

#[test]
fn watches_fire_once_when_set_and_then_for_changes_below() {
    let running = Running::new();
    let mut dom0 = running.dom0();
    let mut one = running.domain(1);
    dom0.mkdir("/local/domain/1").unwrap();
    dom0.set_perms("/local/domain/1", &[Permission::new(DomId(1), Access::None)]).unwrap();
    one.watch("device", "t").unwrap();
    one.watch("/local/domain/1/device/vbd/1/state", "deep").unwrap();
    assert_eq!(event(&mut one).path, "device");
    assert_eq!(event(&mut one).token, "deep");
    assert_eq!(err(one.watch("device", "t")), XsError::EEXIST);
    dom0.write("/local/domain/1/device/vbd/1/state", "1").unwrap();
    let pair = |p: &str, t: &str| (p.to_owned(), t.to_owned());
    let state = "/local/domain/1/device/vbd/1/state";
    assert_eq!(events(&mut one), [pair(state, "deep"), pair("device/vbd/1/state", "t")]);
    dom0.rm("/local/domain/1/device/vbd").unwrap();
    assert_eq!(events(&mut one), [pair("device/vbd", "t"), pair(state, "deep")]);
    // No event for a node that the domain may not read.
    one.watch("/secret", "s").unwrap();
    assert_eq!(event(&mut one).path, "/secret");
    dom0.write("/secret/x", "1").unwrap();
    dom0.write("/local/domain/1/other", "1").unwrap();
    assert_eq!(events(&mut one), []);
    one.unwatch("device", "t").unwrap();
    assert_eq!(err(one.unwatch("device", "t")), XsError::ENOENT);
    one.reset_watches().unwrap();
    dom0.write(state, "2").unwrap();
    assert_eq!(events(&mut one), []);
}

#[test]
fn transaction_commits_all_or_nothing() {
    let running = Running::new();
    let mut a = running.dom0();
    let mut b = running.dom0();
    b.watch("/t", "w").unwrap();
    event(&mut b);
    a.write("/t/n", "1").unwrap();
    event(&mut b);
    let mut attempts = 0;
    a.transaction(|tx| {
        attempts += 1;
        let n: u32 = tx.read_as("/t/n")?;
        if attempts == 1 {
            b.write("/t/n", "10")?;
        }
        tx.write("/t/n", (n + 1).to_string())?;
        assert_eq!(tx.read("/t/n")?, (n + 1).to_string().as_bytes());
        assert_ne!(b.read("/t/n")?, (n + 1).to_string().as_bytes());
        Ok(())
    })
    .unwrap();
    assert_eq!(attempts, 2);
    assert_eq!(b.read("/t/n").unwrap(), b"11");
    assert_eq!(events(&mut b), [("/t/n".to_owned(), "w".to_owned())]);
    let failed = a.transaction(|tx| {
        tx.write("/t/n", "99")?;
        tx.rm("/no/such")
    });
    assert_eq!(err(failed), XsError::ENOENT);
    assert_eq!(b.read("/t/n").unwrap(), b"11");
    let never = a.transaction(|tx| {
        tx.read("/t/n")?;
        b.write("/t/n", "x")
    });
    assert!(matches!(never, Err(Error::Conflict { .. })));
}

#[test]
fn two_devices_can_be_created_in_one_directory_at_once() {
    let running = Running::new();
    let mut a = running.dom0();
    let mut b = running.dom0();
    a.mkdir("/backend/vbd/1").unwrap();
    let mut attempts = 0;
    a.transaction(|tx| {
        attempts += 1;
        tx.write("/backend/vbd/1/51712/state", "1")?;
        b.write("/backend/vbd/1/51728/state", "1")
    })
    .unwrap();
    assert_eq!(attempts, 1);
    // A transaction that has listed the directory depends on its names.
    a.transaction(|tx| {
        attempts += 1;
        tx.directory("/backend/vbd/1")?;
        tx.write("/backend/vbd/1/n", "1")?;
        if attempts == 2 {
            b.write("/backend/vbd/1/51744/state", "1")?;
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(attempts, 3);
}

#[test]
fn directory_longer_than_one_message_is_read_in_parts() {
    let running = Running::new();
    let mut dom0 = running.dom0();
    let names: Vec<String> = (0..2000).map(|n| format!("child-{n:05}")).collect();
    for name in &names {
        dom0.mkdir(&format!("/big/{name}")).unwrap();
    }
    assert_eq!(dom0.directory("/big").unwrap(), names);
    assert_eq!(dom0.transaction(|tx| tx.directory("/big")).unwrap(), names);
}

#[test]
fn released_domain_loses_connections_nodes_and_permissions() {
    let running = Running::new();
    let mut dom0 = running.dom0();
    dom0.watch("@introduceDomain", "in").unwrap();
    dom0.watch("@releaseDomain", "out").unwrap();
    event(&mut dom0);
    event(&mut dom0);
    assert!(!dom0.is_introduced(DomId(1)).unwrap());
    let mut one = running.domain(1);
    assert_eq!(event(&mut dom0).token, "in");
    assert!(dom0.is_introduced(DomId(1)).unwrap());
    assert_eq!(dom0.get_domain_path(DomId(1)).unwrap(), "/local/domain/1");
    dom0.write("/local/domain/1/device/vbd/1", "").unwrap();
    dom0.set_perms("/local/domain/1/device/vbd/1", &[Permission::new(DomId(1), Access::None)]).unwrap();
    dom0.write("/b", "").unwrap();
    dom0.set_perms("/b", &[Permission::new(DomId(0), Access::None), Permission::new(DomId(1), Access::Both)])
        .unwrap();
    one.write("device/vbd/1/state", "4").unwrap();
    one.write("/b", "by one").unwrap();
    running.store.release(DomId(1)).unwrap();
    assert_eq!(event(&mut dom0).token, "out");
    assert!(matches!(one.read("/b"), Err(Error::Closed | Error::Io(_))));
    // Its own nodes are removed, dom0's are not, and the next domain 1 inherits no access.
    assert_eq!(dom0.directory("/local/domain/1/device/vbd").unwrap(), [""; 0]);
    assert_eq!(dom0.get_perms("/b").unwrap(), [Permission::new(DomId(0), Access::None)]);
    let mut next = running.domain(1);
    assert_eq!(err(next.read("/b")), XsError::EACCES);
    assert_eq!(err(dom0.release(DomId(2))), XsError::ENOENT);
    assert_eq!(err(dom0.release(DomId(0))), XsError::EINVAL);
    // INTRODUCE marks a domain as introduced, without a connection.
    dom0.introduce(DomId(5), 77, 3).unwrap();
    assert!(dom0.is_introduced(DomId(5)).unwrap());
    dom0.release(DomId(5)).unwrap();
    assert_eq!(running.store.release(DomId(5)).unwrap_err().raw_os_error(), Some(2));
}

#[test]
fn guest_gets_release_events_only_if_dom0_permits_it() {
    let running = Running::new();
    let mut dom0 = running.dom0();
    let mut two = running.domain(2);
    two.watch("@releaseDomain", "out").unwrap();
    event(&mut two);
    running.domain(3);
    running.store.release(DomId(3)).unwrap();
    assert_eq!(events(&mut two), []);
    assert_eq!(dom0.get_perms("@releaseDomain").unwrap(), [Permission::new(DomId(0), Access::None)]);
    let list = [Permission::new(DomId(0), Access::None), Permission::new(DomId(2), Access::Read)];
    dom0.set_perms("@releaseDomain", &list).unwrap();
    running.domain(3);
    events(&mut two);
    running.store.release(DomId(3)).unwrap();
    assert_eq!(event(&mut two).path, "@releaseDomain");
}

#[test]
fn features_quotas_and_control_reply() {
    let running = Running::new();
    let mut dom0 = running.dom0();
    assert_eq!(dom0.get_feature(None).unwrap(), 0);
    assert_eq!(err(dom0.set_feature(DomId(4), 1)), XsError::EINVAL);
    dom0.set_feature(DomId(4), 0).unwrap();
    assert!(dom0.quota_names().unwrap().contains(&"nodes".to_owned()));
    assert_eq!(dom0.get_quota(None, "nodes").unwrap(), 1000);
    dom0.set_quota(Some(DomId(4)), "nodes", 3).unwrap();
    assert_eq!(dom0.get_quota(Some(DomId(4)), "nodes").unwrap(), 3);
    assert_eq!(err(dom0.get_quota(Some(DomId(9)), "nodes")), XsError::ENOENT);
    assert_eq!(err(dom0.get_quota(None, "joy")), XsError::EINVAL);
    assert!(dom0.control(&["help"]).unwrap().contains("quota"));
    assert!(dom0.control(&["quota", "4"]).unwrap().contains("Domain 4"));
    dom0.control(&["print", "hello"]).unwrap();
    assert_eq!(err(dom0.control(&["live-update"])), XsError::EINVAL);
    let mut four = running.domain(4);
    assert_eq!(four.get_feature(None).unwrap(), 0);
    assert_eq!(err(four.get_feature(Some(DomId(4)))), XsError::EACCES);
    assert_eq!(err(four.get_quota(None, "nodes")), XsError::EACCES);
}

/// The time of 5,000 writes to a store with this configuration, which runs on.
fn time_writes(config: Config) -> (Store, Duration) {
    let store = Store::spawn(config).unwrap();
    let mut dom0 = store.client().unwrap();
    let started = Instant::now();
    for number in 0..5000 {
        dom0.write(&format!("/written/{}", number % 100), "v".repeat(100)).unwrap();
    }
    (store, started.elapsed())
}

#[test]
fn store_that_was_killed_is_succeeded_with_all_that_it_held() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.state");
    let keeping = |predecessor| Config { state: Some(path.clone()), predecessor, ..Config::default() };
    let (_, alone) = time_writes(Config::default());
    let (store, kept) = time_writes(keeping(None));
    println!("a write takes {:?}, and {:?} where it is kept", alone / 5000, kept / 5000);
    let (stream, other) = UnixStream::pair().unwrap();
    store.introduce(DomId(1), other).unwrap();
    let mut guest = Client::new(stream);
    let mut dom0 = store.client().unwrap();
    dom0.write("/local/domain/1/a", "x").unwrap();
    dom0.set_perms("/local/domain/1/a", &[Permission::new(DomId(1), Access::None)]).unwrap();
    guest.write("a", "of the guest").unwrap();
    store.hand_over();
    assert!(matches!(dom0.read("/local/domain/1/a"), Err(Error::Closed | Error::Io(_))));
    let image = Image::read(&path).unwrap();
    assert!(image.is_some());
    let store = Store::spawn(keeping(image)).unwrap();
    let mut dom0 = store.client().unwrap();
    assert_eq!(dom0.directory("/written").unwrap().len(), 100);
    assert_eq!(dom0.read("/local/domain/1/a").unwrap(), b"of the guest");
    assert_eq!(dom0.get_perms("/local/domain/1/a").unwrap(), [Permission::new(DomId(1), Access::None)]);
    assert!(dom0.is_introduced(DomId(1)).unwrap());
    // One that is stopped leaves nothing.
    drop(store);
    assert!(Image::read(&path).unwrap().is_none());
}
