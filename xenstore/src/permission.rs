//! A node's permissions as they are on the wire: a letter and a domain's number.

use std::fmt;
use std::str::FromStr;

use ring_abi::DomId;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nothing: `n`.
    None,
    /// Read it: `r`.
    Read,
    /// Write it: `w`.
    Write,
    /// Both: `b`.
    Both,
}

/// One entry of a node's permissions. The first entry names the owner, who may always read and write, and the access of
/// all domains without an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    /// The domain.
    pub domid: DomId,
    /// The domain's access.
    pub access: Access,
}

impl Permission {
    /// Makes an entry.
    pub fn new(domid: DomId, access: Access) -> Permission {
        Permission { domid, access }
    }
}

impl Access {
    /// Whether reading is allowed.
    pub fn reads(self) -> bool {
        matches!(self, Access::Read | Access::Both)
    }

    /// Whether writing is allowed.
    pub fn writes(self) -> bool {
        matches!(self, Access::Write | Access::Both)
    }

    fn letter(self) -> char {
        match self {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        }
    }
}

/// The text is no permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a permission: one of n, r, w, b and a domain's number")]
pub struct NotAPermission;

impl FromStr for Permission {
    type Err = NotAPermission;

    fn from_str(text: &str) -> Result<Permission, NotAPermission> {
        let mut rest = text.chars();
        let access = match rest.next() {
            Some('n') => Access::None,
            Some('r') => Access::Read,
            Some('w') => Access::Write,
            Some('b') => Access::Both,
            _ => return Err(NotAPermission),
        };
        let digits = rest.as_str();
        if !digits.bytes().all(|d| d.is_ascii_digit()) {
            return Err(NotAPermission);
        }
        Ok(Permission { domid: digits.parse().map_err(|_| NotAPermission)?, access })
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.access.letter(), self.domid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_text_round_trips_and_malformed_text_is_refused() {
        for text in ["n0", "r1", "w65535", "b7"] {
            assert_eq!(text.parse::<Permission>().unwrap().to_string(), text);
        }
        for bad in ["", "n", "x1", "r-1", "r+1", "r65536", "r1 ", "1"] {
            assert_eq!(bad.parse::<Permission>(), Err(NotAPermission), "{bad}");
        }
    }
}
