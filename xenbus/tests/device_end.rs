//! Both ends of a device over a running store.

use ring_abi::DomId;
use ring_abi::xenbus::key;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use xenbus::{Change, Device, DeviceEnd, Expected, Keys, XenbusState};
use xenstore::server::{Config, Store};
use xenstore::{Access, Client, Nodes, Permission, WatchEvent};

/// Timeout of replies and events.
const BOUND: Duration = Duration::from_secs(20);

/// A client of a guest of this store.
fn guest_of(store: &Store, domid: DomId) -> Client {
    let (guest, store_end) = UnixStream::pair().unwrap();
    store.introduce(domid, store_end).unwrap();
    let mut client = Client::new(guest);
    client.set_reply_timeout(Some(BOUND));
    client
}

/// The next event, which must come.
fn event(client: &mut Client) -> WatchEvent {
    client.wait_event(Some(BOUND)).unwrap().expect("a watch event")
}

/// All events of earlier requests: a request's events are sent before its reply.
fn events(client: &mut Client) -> Vec<WatchEvent> {
    client.get_domain_path(DomId::DOM0).unwrap();
    std::iter::from_fn(|| client.poll_event().unwrap()).collect()
}

#[test]
fn device_ends_complete_the_handshake() {
    let store = Store::spawn(Config::default()).unwrap();
    let mut dom0 = store.client().unwrap();
    let mut guest = guest_of(&store, DomId(3));
    let device = Device::new("vbd", DomId(3), 51712);
    let front = DeviceEnd::front(&device);
    let back = DeviceEnd::back(&device);
    dom0.mkdir(front.path()).unwrap();
    dom0.set_perms(front.path(), &[Permission::new(DomId(3), Access::None)]).unwrap();
    dom0.write(&format!("{}/{}", front.path(), key::BACKEND), back.path()).unwrap();
    dom0.write(&format!("{}/{}", front.path(), key::BACKEND_ID), "0").unwrap();
    for (key, value) in [(key::FRONTEND, front.path()), (key::FRONTEND_ID, "3"), (key::STATE, "1")] {
        dom0.write(&format!("{}/{key}", back.path()), value).unwrap();
    }
    let perms = [Permission::new(DomId(0), Access::None), Permission::new(DomId(3), Access::Read)];
    dom0.set_perms(back.path(), &perms).unwrap();
    dom0.set_perms(&format!("{}/{}", back.path(), key::STATE), &perms).unwrap();
    assert_eq!(DeviceEnd::find_front(&mut guest, front.path()).unwrap(), front);
    assert_eq!(DeviceEnd::find_back(&mut dom0, back.path()).unwrap(), back);

    assert_eq!(back.other_state(&mut dom0).unwrap(), XenbusState::Closed);
    front.watch_other(&mut guest, "b").unwrap();
    event(&mut guest);
    let keys = Keys::new(back.path()).with("sectors", 2048).with("feature-persistent", 1);
    assert!(back.publish(&mut dom0, &keys, XenbusState::InitWait).unwrap());
    assert_eq!(event(&mut guest).token, "b");
    assert_eq!(front.other_state(&mut guest).unwrap(), XenbusState::InitWait);
    let offered = front.other_keys(&mut guest).unwrap();
    assert_eq!(offered.need::<u64>("sectors").unwrap(), 2048);
    let keys = Keys::new(front.path()).with("queue-0/ring-ref", 8).with("protocol", "x86_64-abi");
    front.publish(&mut guest, &keys, XenbusState::Connected).unwrap();
    let keys = back.other_keys(&mut dom0).unwrap();
    assert_eq!(keys.below("queue-0").need::<u32>("ring-ref").unwrap(), 8);
    assert_eq!(keys.get("queue-0"), None);
    assert_eq!(keys.get("protocol"), Some("x86_64-abi"));

    // Writing the same state fires no event.
    back.switch_state(&mut dom0, XenbusState::InitWait).unwrap();
    assert_eq!(events(&mut guest), []);

    back.error(&mut dom0, 22, "no such ring");
    let error = dom0.read_text("/local/domain/0/error/backend/vbd/3/51712/error").unwrap();
    assert_eq!(error, "22 no such ring");
    dom0.rm(back.path()).unwrap();
    assert!(!back.switch_state(&mut dom0, XenbusState::Closed).unwrap());
    assert_eq!(front.other_state(&mut guest).unwrap(), XenbusState::Closed);
    assert!(!dom0.exists(back.path()).unwrap());
}

#[test]
fn nodes_of_a_removed_device_are_not_written() {
    use XenbusState::{Connected, Initialising};
    let store = Store::spawn(Config::default()).unwrap();
    let mut dom0 = store.client().unwrap();
    let front = DeviceEnd::front(&Device::new("vif", DomId(3), 0));
    let keys = Keys::default().with("tx-ring-ref", 8);
    let expected = Expected { own: Initialising, ..Expected::default() };
    let change =
        Change { state: Connected, rewrite: false, keys: &keys, removed: &[], error: Some((5, "late")) };
    assert!(!front.change(&mut dom0, &expected, &change).unwrap());
    assert!(!front.change(&mut dom0, &Expected::default(), &change).unwrap());
    front.error(&mut dom0, 5, "late");
    assert!(!dom0.exists(front.path()).unwrap());
    assert!(!dom0.exists(&front.error_path()).unwrap());
}

#[test]
fn change_is_written_only_if_the_store_is_as_it_was_read() {
    use XenbusState::{Closed, Connected, InitWait, Initialised};
    let store = Store::spawn(Config::default()).unwrap();
    let mut dom0 = store.client().unwrap();
    let device = Device::new("vbd", DomId(3), 51712);
    let back = DeviceEnd::back(&device);
    let front = DeviceEnd::front(&device);
    let write = |client: &mut Client, end: &DeviceEnd, key: &str, value: &str| {
        client.write(&format!("{}/{key}", end.path()), value).unwrap();
    };
    write(&mut dom0, &back, key::STATE, InitWait.as_text());
    write(&mut dom0, &back, key::INSTANCE, "a");
    write(&mut dom0, &front, key::STATE, Initialised.as_text());
    write(&mut dom0, &front, "ring-ref", "8");
    let keys = Keys::default().with("sectors", 8);
    let rings = Keys::default().with("ring-ref", 8);
    let other_rings = Keys::default().with("ring-ref", 9);
    let change = Change { state: Connected, rewrite: false, keys: &keys, removed: &[], error: None };
    let expected = Expected {
        instance: Some("a"),
        own: InitWait,
        other: Some(Initialised),
        other_keys: Some(&rings),
        ..Expected::default()
    };
    for wrong in [
        Expected { instance: Some("b"), ..expected },
        Expected { own: Closed, ..expected },
        Expected { own_keys: Some(&rings), ..expected },
        Expected { other: Some(Connected), ..expected },
        Expected { other_keys: Some(&other_rings), ..expected },
    ] {
        assert!(!back.change(&mut dom0, &wrong, &change).unwrap(), "{wrong:?}");
        assert_eq!(back.state(&mut dom0).unwrap(), InitWait);
        assert!(!dom0.exists(&format!("{}/sectors", back.path())).unwrap());
    }
    assert!(back.change(&mut dom0, &expected, &change).unwrap());
    assert_eq!(back.state(&mut dom0).unwrap(), Connected);
    // The frontend finds its backend's.
    let expected =
        Expected { instance: Some("b"), own: Initialised, other: Some(Connected), ..Expected::default() };
    let change = Change { keys: &Keys::default(), removed: &["ring-ref", "absent"], ..change };
    assert!(!front.change(&mut dom0, &expected, &change).unwrap());
    assert!(front.change(&mut dom0, &Expected { instance: Some("a"), ..expected }, &change).unwrap());
    assert!(!dom0.exists(&format!("{}/ring-ref", front.path())).unwrap());
}
