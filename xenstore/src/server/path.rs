//! A node's path: checked and made absolute when it is parsed.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use ring_abi::xs_wire::{ABS_PATH_MAX, XsError};

use ring_abi::DomId;

/// An absolute path (`/`, `/a/b`), or the name of a special node (`@releaseDomain`). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Path(Arc<str>);

/// The path of a request, made absolute.
pub(super) struct RequestPath {
    pub(super) path: Path,
    /// Bytes to strip from an event's path, because the request's path was relative to the domain's home.
    pub(super) prefix: usize,
}

impl Path {
    /// The root, `/`.
    pub(super) fn root() -> Path {
        Path("/".into())
    }

    /// Makes a path from text that is known to be well-formed.
    pub(super) fn fixed(path: &str) -> Path {
        Path(path.into())
    }

    /// A domain's home, `/local/domain/<domid>`.
    pub(super) fn home(domid: DomId) -> Path {
        Path(format!("/local/domain/{domid}").into())
    }

    /// Parses a request's path and makes it absolute. `longest`, if not 0, bounds its length below a domain's home.
    ///
    /// # Errors
    /// EINVAL when it is empty or too long, has forbidden bytes, doubled or trailing slashes, or is special where no
    /// special path is allowed.
    pub(super) fn parse(
        bytes: &[u8],
        domid: DomId,
        longest: u32,
        special: bool,
    ) -> Result<RequestPath, XsError> {
        let text = std::str::from_utf8(bytes).map_err(|_| XsError::EINVAL)?;
        if !text.bytes().all(allowed) || text.is_empty() || text.len() > ABS_PATH_MAX {
            return Err(XsError::EINVAL);
        }
        if text.starts_with('@') {
            let plain = special && !text.contains('/');
            return plain.then(|| RequestPath { path: Path(text.into()), prefix: 0 }).ok_or(XsError::EINVAL);
        }
        let (path, prefix) = match text.starts_with('/') {
            true => (text.to_owned(), 0),
            false => {
                let home = Path::home(domid);
                (format!("{home}/{text}"), home.as_str().len() + 1)
            }
        };
        let well_formed = path == "/" || !path.ends_with('/') && !path.contains("//");
        let fits =
            path.len() <= ABS_PATH_MAX && (longest == 0 || below_home(&path).len() <= longest as usize);
        match well_formed && fits {
            true => Ok(RequestPath { path: Path(path.into()), prefix }),
            false => Err(XsError::EINVAL),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn is_special(&self) -> bool {
        self.0.starts_with('@')
    }

    pub(super) fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// The names of its components from the root down; none for the root itself.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|name| !name.is_empty())
    }

    /// The last component's name; the whole path when special, empty for the root.
    pub(super) fn last(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }

    /// The parent's path; the root for the root and for a special node.
    pub(super) fn parent(&self) -> Path {
        match self.0.rfind('/') {
            Some(slash) if slash > 0 => Path(self.0[..slash].into()),
            _ => Path::root(),
        }
    }

    /// This path and those of all its ancestors, the root last.
    pub(super) fn upwards(&self) -> impl Iterator<Item = &str> {
        let whole = &*self.0;
        let mut next = Some(whole);
        std::iter::from_fn(move || {
            let here = next?;
            next = match here.rfind('/') {
                None => None,
                Some(0) => (here.len() > 1).then_some("/"),
                Some(slash) => Some(&here[..slash]),
            };
            Some(here)
        })
    }
}

impl Borrow<str> for Path {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// docs/misc/xenstore.txt: ASCII alphanumerics and `-/_@`.
fn allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@')
}

/// A path without `/local/domain/<domid>/`, whose length the quota limits.
fn below_home(path: &str) -> &str {
    path.strip_prefix("/local/domain/")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(domid, _)| domid.parse::<DomId>().is_ok())
        .map_or(path, |(_, below)| below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, XsError> {
        Path::parse(text.as_bytes(), DomId(7), 2048, true).map(|g| g.path.to_string())
    }

    #[test]
    fn well_formed_paths_are_parsed() {
        for path in ["/", "/a", "/a/b-c_d@E9", "@releaseDomain"] {
            assert_eq!(parse(path).as_deref(), Ok(path));
        }
        assert_eq!(parse("device/vbd").as_deref(), Ok("/local/domain/7/device/vbd"));
        let request = Path::parse(b"a", DomId(7), 0, false).unwrap();
        assert_eq!(&request.path.as_str()[request.prefix..], "a");
    }

    #[test]
    fn malformed_paths_are_einval() {
        let long = format!("/{}", "a".repeat(2048));
        for path in ["", "//", "/a/", "a/", "/a//b", "/a b", "/\u{e9}", "/a\0", "@a/b", &long] {
            assert_eq!(parse(path), Err(XsError::EINVAL), "{path:?}");
        }
        assert!(Path::parse(b"@x", DomId::DOM0, 0, false).is_err());
        assert!(parse(&format!("/local/domain/1/{}", "a".repeat(2048))).is_ok());
    }

    #[test]
    fn upwards_lists_ancestors_up_to_the_root() {
        let up = |p: &str| Path::fixed(p).upwards().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(up("/a/b"), ["/a/b", "/a", "/"]);
        assert_eq!(up("/"), ["/"]);
        assert_eq!(up("@x"), ["@x"]);
        assert_eq!(Path::fixed("/a").parent(), Path::root());
        assert_eq!(Path::fixed("/a/b").parent().as_str(), "/a");
    }
}
