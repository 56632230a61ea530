//! Conformance tests that run against this crate's store and against xenstored.
//!
//! By default they run against this crate's store; with XPV_XENSTORE set, against the store at that path: a socket, or
//! dom0's `/dev/xen/xenbus`. All requests are dom0's, so that no other domain need exist.

mod common;

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use common::{BOUND, Running, event};
use ring_abi::xs_wire::MessageType::{self, *};
use xenstore::{Access, Client, DomId, Error, Nodes, Permission, XsError};

/// The store under test.
#[derive(PartialEq)]
enum Store {
    /// This crate's.
    Own,
    /// xenstored, by its socket.
    Socket(PathBuf),
    /// xenstored through Linux's xenbus device, which handles some requests itself.
    Device(PathBuf),
}

fn store() -> Store {
    match std::env::var_os("XPV_XENSTORE").map(PathBuf::from) {
        None => Store::Own,
        Some(path) if std::fs::metadata(&path).unwrap().file_type().is_socket() => Store::Socket(path),
        Some(path) => Store::Device(path),
    }
}

/// Makes a connection of dom0.
fn dom0() -> Client {
    static STORE: OnceLock<Running> = OnceLock::new();
    let mut client = match store() {
        Store::Own => return STORE.get_or_init(Running::new).dom0(),
        Store::Socket(path) => Client::open_unix(path).unwrap(),
        Store::Device(path) => Client::new(File::options().read(true).write(true).open(path).unwrap()),
    };
    client.set_reply_timeout(Some(BOUND));
    client
}

/// Makes a connection and an empty directory for one test.
fn connection_and_dir(name: &str) -> (Client, String) {
    let mut client = dom0();
    let path = format!("/xpv-test/{name}");
    client.mkdir(&path).unwrap();
    client.rm(&path).unwrap();
    client.mkdir(&path).unwrap();
    (client, path)
}

fn err<T: std::fmt::Debug>(result: Result<T, Error>) -> XsError {
    let error = result.unwrap_err();
    error.store_error().unwrap_or_else(|| panic!("not an error reply: {error}"))
}

#[test]
fn nodes_are_written_listed_and_removed() {
    let (mut xs, p) = connection_and_dir("nodes");
    xs.write(&format!("{p}/a/b"), [0, 1, 255]).unwrap();
    assert_eq!(xs.read(&format!("{p}/a/b")).unwrap(), [0, 1, 255]);
    assert_eq!(xs.read(&format!("{p}/a")).unwrap(), b"");
    xs.mkdir(&format!("{p}/a/b")).unwrap();
    assert_eq!(xs.read(&format!("{p}/a/b")).unwrap(), [0, 1, 255]);
    xs.mkdir(&format!("{p}/a/c")).unwrap();
    assert_eq!(xs.directory(&format!("{p}/a")).unwrap(), ["b", "c"]);
    assert_eq!(xs.directory(&format!("{p}/a/b")).unwrap(), [""; 0]);
    xs.rm(&format!("{p}/a")).unwrap();
    xs.rm(&format!("{p}/a")).unwrap();
    assert_eq!(err(xs.rm(&format!("{p}/a/b"))), XsError::ENOENT);
    assert_eq!(err(xs.read(&format!("{p}/a/b"))), XsError::ENOENT);
    assert_eq!(err(xs.directory(&format!("{p}/a"))), XsError::ENOENT);
    assert_eq!(err(xs.get_perms(&format!("{p}/a"))), XsError::ENOENT);
    assert_eq!(err(xs.rm("/")), XsError::EINVAL);
}

#[test]
fn malformed_paths_are_einval_and_relative_ones_below_home() {
    let (mut xs, p) = connection_and_dir("paths");
    for bad in ["//", "/a/", "/a//b", "/a b", "/a.b", "@x", "/\u{e9}", ""] {
        assert_eq!(err(xs.read(bad)), XsError::EINVAL, "{bad:?}");
    }
    assert_eq!(err(xs.read(&"/a".repeat(1537))), XsError::EINVAL);
    xs.write(&format!("{p}/A-z_0@9"), "").unwrap();
    // A relative path is below dom0's home, over a socket too.
    xs.write(&format!("/local/domain/0{p}"), "home").unwrap();
    assert_eq!(xs.read(&p[1..]).unwrap(), b"home");
    xs.rm("/local/domain/0/xpv-test").unwrap();
}

#[test]
fn permissions_are_set_and_inherited() {
    let (mut xs, p) = connection_and_dir("permissions");
    assert_eq!(xs.get_perms(&p).unwrap()[0].domid, DomId::DOM0);
    let list = [Permission::new(DomId(0), Access::Read), Permission::new(DomId(0), Access::Both)];
    xs.set_perms(&p, &list).unwrap();
    assert_eq!(xs.get_perms(&p).unwrap(), list);
    xs.write(&format!("{p}/a/b"), "").unwrap();
    assert_eq!(xs.get_perms(&format!("{p}/a/b")).unwrap(), list);
    assert_eq!(err(xs.set_perms(&format!("{p}/none"), &list)), XsError::ENOENT);
    for bad in [&b"\0"[..], b"/\0", b"/\0x0\0", b"/\0n\0"] {
        assert_eq!(err(xs.request(SetPerms, "", bad)), XsError::EINVAL, "{bad:?}");
    }
}

#[test]
fn watches_fire_for_changes_at_and_below_their_path() {
    let (mut xs, p) = connection_and_dir("watches");
    let mut other = dom0();
    let deep = format!("{p}/a/b");
    let missing = format!("{p}/a/missing");
    for (path, token) in [(&p, "top"), (&deep, "deep"), (&missing, "missing")] {
        xs.watch(path, token).unwrap();
        assert_eq!(event(&mut xs), xenstore::WatchEvent { path: path.clone(), token: token.into() });
    }
    // The device keeps its own list of watches, and reports neither EEXIST nor ENOENT.
    if !matches!(store(), Store::Device(_)) {
        assert_eq!(err(xs.watch(&p, "top")), XsError::EEXIST);
        assert_eq!(err(xs.unwatch(&p, "none")), XsError::ENOENT);
        assert_eq!(err(xs.unwatch(&missing, "top")), XsError::ENOENT);
    }
    other.write(&deep, "1").unwrap();
    let two = [event(&mut xs).path, event(&mut xs).path];
    assert_eq!(two, [deep.clone(), deep.clone()]);
    // MKDIR does not change an existing node.
    other.mkdir(&deep).unwrap();
    other.rm(&format!("{p}/a/none")).unwrap();
    other.set_perms(&deep, &[Permission::new(DomId(0), Access::None)]).unwrap();
    assert_eq!([event(&mut xs).path, event(&mut xs).path], [deep.clone(), deep.clone()]);
    other.rm(&format!("{p}/a")).unwrap();
    let mut two = [event(&mut xs).path, event(&mut xs).path];
    two.sort();
    assert_eq!(two, [format!("{p}/a"), deep.clone()]);
    assert_eq!(xs.poll_event().unwrap(), None);
    xs.unwatch(&p, "top").unwrap();
    other.write(&missing, "1").unwrap();
    assert_eq!(event(&mut xs).path, missing);
}

#[test]
fn relative_and_special_watches_fire() {
    let (mut xs, _) = connection_and_dir("relative");
    let mut other = dom0();
    xs.watch("xpv-relative", "t").unwrap();
    assert_eq!(event(&mut xs).path, "xpv-relative");
    other.write("/local/domain/0/xpv-relative/x", "").unwrap();
    assert_eq!(event(&mut xs).path, "xpv-relative/x");
    other.rm("/local/domain/0/xpv-relative").unwrap();
    assert_eq!(event(&mut xs).path, "xpv-relative");
    for special in ["@introduceDomain", "@releaseDomain", "@anything"] {
        xs.watch(special, "s").unwrap();
        assert_eq!(event(&mut xs).path, special);
    }
}

#[test]
fn transactions_conflict_commit_and_abort() {
    let (mut xs, p) = connection_and_dir("transactions");
    let mut other = dom0();
    let n = format!("{p}/n");
    other.watch(&p, "t").unwrap();
    event(&mut other);
    xs.write(&n, "1").unwrap();
    event(&mut other);
    let mut attempts = 0;
    xs.transaction(|tx| {
        attempts += 1;
        let n_is: u32 = tx.read_as(&n)?;
        if attempts == 1 {
            other.write(&n, "10")?;
            assert_eq!(tx.read_as::<u32>(&n)?, n_is);
        }
        tx.write(&n, (n_is + 1).to_string())?;
        tx.write(&format!("{p}/new/deep"), "")
    })
    .unwrap();
    assert_eq!(attempts, 2);
    assert_eq!(other.read(&n).unwrap(), b"11");
    let paths = std::iter::from_fn(|| other.wait_event(Some(BOUND)).unwrap()).map(|e| e.path);
    let seen: Vec<String> = paths.take_while(|path| !path.ends_with("/deep")).collect();
    assert!(seen.iter().all(|path| *path == n), "{seen:?}");
    // A node that was missing when it was read conflicts with its creation.
    let outcome = xs.transaction(|tx| {
        if attempts == 2 {
            attempts += 1;
            assert!(!tx.exists(&format!("{p}/later"))?);
            other.write(&format!("{p}/later"), "")?;
        }
        tx.exists(&format!("{p}/later"))
    });
    assert!(outcome.unwrap());
    // An aborted transaction, and one that commits a removal.
    let failed = xs.transaction(|tx| {
        tx.rm(&p)?;
        assert!(!tx.exists(&n)?);
        tx.rm("/")
    });
    assert_eq!(err(failed), XsError::EINVAL);
    assert!(other.exists(&n).unwrap());
    xs.transaction(|tx| tx.rm(&p)).unwrap();
    assert!(!other.exists(&n).unwrap());
    // The device neither passes on nor answers the end of a transaction whose start it has not seen.
    if !matches!(store(), Store::Device(_)) {
        assert_eq!(err(xs.request(TransactionEnd, "", b"T\0")), XsError::ENOENT);
    }
}

#[test]
fn directory_longer_than_one_message_is_listed() {
    let (mut xs, p) = connection_and_dir("big");
    let names: Vec<String> = (0..900).map(|n| format!("child-{n:04}")).collect();
    for name in &names {
        xs.mkdir(&format!("{p}/{name}")).unwrap();
    }
    assert_eq!(err(xs.request(Directory, "", format!("{p}\0").as_bytes())), XsError::E2BIG);
    assert_eq!(xs.directory(&p).unwrap(), names);
    let beyond = xs.request(DirectoryPart, "", format!("{p}\099999\0").as_bytes()).unwrap();
    assert!(beyond.ends_with(b"\0\0"), "{beyond:?}");
    xs.rm(&p).unwrap();
}

#[test]
fn domain_requests_get_the_replies_of_xenstored() {
    let mut xs = dom0();
    assert_eq!(xs.get_domain_path(DomId(77)).unwrap(), "/local/domain/77");
    assert!(xs.is_introduced(DomId(0)).unwrap());
    assert!(!xs.is_introduced(DomId(777)).unwrap());
    assert_eq!(err(xs.release(DomId(777))), XsError::ENOENT);
    assert_eq!(err(xs.release(DomId(0))), XsError::EINVAL);
    assert_eq!(err(xs.set_target(DomId(777), DomId(778))), XsError::ENOENT);
    assert_eq!(err(xs.request(Introduce, "", b"1\0")), XsError::EINVAL);
    assert_eq!(err(xs.introduce(DomId(1), 1, 0)), XsError::EINVAL);
    assert_eq!(err(xs.control(&["no-such-command"])), XsError::EINVAL);
    assert!(xs.control(&["help"]).unwrap().contains("help"));
}

#[test]
fn malformed_requests_are_einval() {
    let mut xs = dom0();
    let wrong: [(MessageType, &[u8]); 9] = [
        (Read, b""),
        (Read, b"/no-nul"),
        (Read, b"/a\0/b\0"),
        (Write, b"/no-nul"),
        (Mkdir, b""),
        (GetPerms, b"/\0/\0"),
        (DirectoryPart, b"/\0"),
        (GetDomainPath, b""),
        (IsDomainIntroduced, b""),
    ];
    for (kind, payload) in wrong {
        // xenstored of Xen 4.17 crashes on these when the payload is not one string.
        if matches!(kind, Read | Mkdir | GetPerms) && store() != Store::Own {
            continue;
        }
        println!("{kind:?} {payload:?}");
        assert_eq!(err(xs.request(kind, "", payload)), XsError::EINVAL);
    }
    assert_eq!(err(xs.request(WatchEvent, "", b"/\0t\0")), XsError::ENOSYS);
    assert_eq!(xs.read("/tool/xenstored").unwrap(), b"");
}
