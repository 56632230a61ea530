//! What to say when something that a row needs is not there: a program, or a part of the kernel.

use std::io::{Error, ErrorKind};

/// Why `program`, of Debian's package `package`, did not start, and what helps.
pub fn not_started(program: &str, package: &str, error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => format!("`{program}` is not installed: apt-get install {package}"),
        _ => format!("`{program}` (Debian's package {package}) does not start: {error}"),
    }
}

/// What helps if `ip` says in these words that the kernel has no bridge or no veth.
pub fn no_bridge(said: &str) -> Option<String> {
    let is_missing = said.contains("Unknown device type") || said.contains("Operation not supported");
    is_missing
        .then(|| format!("the kernel has no bridge or no veth ({said}): as root, modprobe -a bridge veth"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_names_its_package() {
        let said = not_started("fio", "fio", &Error::from(ErrorKind::NotFound));
        assert_eq!(said, "`fio` is not installed: apt-get install fio");
    }
    #[test]
    fn missing_bridge_module_is_named() {
        let said = no_bridge("ip: Error: Unknown device type.").unwrap();
        assert!(said.ends_with("modprobe -a bridge veth"), "{said}");
        assert_eq!(no_bridge("ip: RTNETLINK answers: File exists"), None);
    }
}
