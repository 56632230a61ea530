//! The list of attacks of a hostile frontend, as tests on each platform.

/// Makes a test of each named function of the caller's module `attacks`, on three platforms: `local`, a second module in
/// threads with the other variant of the data path, and `xen`, which is ignored unless built with `--cfg xen_host`.
///
/// The functions take the platform that `in_threads::platform(false)`, `in_threads::platform(true)` and
/// `on_xen::platform()` of the caller's crate make.
#[macro_export]
macro_rules! attacks {
    (variant = $variant:ident, ignored = $ignored:literal; $($attack:ident)*) => {
        mod local { $(
            #[test]
            fn $attack() { super::attacks::$attack(&mut *super::in_threads::platform(false)); }
        )* }
        mod $variant { $(
            #[test]
            fn $attack() { super::attacks::$attack(&mut *super::in_threads::platform(true)); }
        )* }
        mod xen { $(
            #[test]
            #[cfg_attr(not(xen_host), ignore = $ignored)]
            fn $attack() { super::attacks::$attack(&mut *super::on_xen::platform()); }
        )* }
    };
}
