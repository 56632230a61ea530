//! A panic of a thread that holds `Essential` ends the process; another thread's does not.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use event_loop::Essential;

const CHILD: &str = "XPV_TEST_ESSENTIAL";
const ABRT: i32 = 6;

#[test]
fn process_ends_if_an_essential_thread_panics() {
    let kind = std::env::var(CHILD).ok();
    if let Some(kind) = kind {
        let is_essential = kind == "essential";
        let thread = std::thread::spawn(move || {
            let _essential = is_essential.then_some(Essential);
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        return;
    }
    let run = |kind: &str| {
        let test = "process_ends_if_an_essential_thread_panics";
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", test]).env(CHILD, kind).output().unwrap().status
    };
    assert_eq!(run("essential").signal(), Some(ABRT));
    assert!(run("other").success());
}
