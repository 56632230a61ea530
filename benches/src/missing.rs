//! What to say when a program that a row needs cannot be run.

use std::io::{Error, ErrorKind};

/// Why `program`, of Debian's package `package`, did not start, and what helps.
pub fn not_started(program: &str, package: &str, error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => format!("`{program}` is not installed: apt-get install {package}"),
        _ => format!("`{program}` (Debian's package {package}) does not start: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_names_its_package() {
        let said = not_started("fio", "fio", &Error::from(ErrorKind::NotFound));
        assert_eq!(said, "`fio` is not installed: apt-get install fio");
    }
}
