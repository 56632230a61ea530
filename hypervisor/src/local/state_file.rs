//! The file by which a broker that was killed is succeeded: its domains, their users and names, and their members' tokens.
//!
//! It has one slot a domain number, which is overwritten by one `pwrite` within a page and has a checksum, so that it is
//! whole whenever the process dies. It does not survive the host: what it describes are processes.

use super::record::KeptMember;
use super::token::Token;
use super::wire::is_name;
use crate::{Error, Result};
use ring_abi::DomId;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file's name in the broker's directory.
const NAME: &str = "domains.state";
/// The name while it is being written.
const NEW: &str = "domains.new";
/// Bytes of a slot, of which a page has a whole number.
const SLOT: usize = 128;
/// Slots: the header's, and one for each number.
const SLOTS: usize = DomId::FIRST_RESERVED.0 as usize + 1;
const MAGIC: [u8; 8] = *b"xpvdoms1";

/// What a broker keeps for its successor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// The number that was given to a domain last.
    pub last: DomId,
    /// The domains, in order of their numbers.
    pub domains: Vec<KeptDomain>,
}

/// A domain as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptDomain {
    /// Its number.
    pub domid: DomId,
    /// The user whose processes may join as it.
    pub uid: u32,
    /// Its name.
    pub name: String,
    /// The process that has joined as it.
    pub member: Option<KeptMember>,
}

/// Appends the fields of a slot.
struct Writer([u8; SLOT], usize);

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
        self
    }

    /// Ends the slot with its checksum.
    fn end(mut self) -> [u8; SLOT] {
        let (content, checksum) = self.0.split_at_mut(SLOT - 4);
        checksum.copy_from_slice(&crc32fast::hash(content).to_le_bytes());
        self.0
    }
}

/// Takes the fields of a slot, whose checksum is right.
struct Reader<'s>(&'s [u8]);

impl<'s> Reader<'s> {
    fn new(slot: &'s [u8]) -> Option<Self> {
        let (content, checksum) = slot.split_last_chunk::<4>()?;
        (content.len() == SLOT - 4 && crc32fast::hash(content) == u32::from_le_bytes(*checksum))
            .then_some(Self(content))
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

fn header(last: DomId) -> [u8; SLOT] {
    let mut slot = Writer([0; SLOT], 0);
    slot.put(&MAGIC).put(&last.0.to_le_bytes());
    slot.end()
}

fn decode_header(slot: &[u8]) -> Option<DomId> {
    let mut slot = Reader::new(slot)?;
    let magic = slot.take::<8>()?;
    let last = DomId(u16::from_le_bytes(slot.take()?));
    (magic == MAGIC && last < DomId::FIRST_RESERVED).then_some(last)
}

fn encode(domain: &KeptDomain) -> [u8; SLOT] {
    let mut slot = Writer([0; SLOT], 0);
    let name = &domain.name.as_bytes()[..domain.name.len().min(super::wire::MAX_NAME)];
    slot.put(&domain.domid.0.to_le_bytes())
        .put(&[name.len() as u8, domain.member.is_some().into()])
        .put(&domain.uid.to_le_bytes());
    let member = domain.member.map_or((0, [0; 16]), |member| (member.pid, member.token.to_bytes()));
    slot.put(&member.0.to_le_bytes()).put(&member.1).put(name);
    slot.end()
}

fn decode(slot: &[u8]) -> Option<KeptDomain> {
    let mut slot = Reader::new(slot)?;
    let domid = DomId(u16::from_le_bytes(slot.take()?));
    let [len, is_member] = slot.take()?;
    let uid = u32::from_le_bytes(slot.take()?);
    let pid = u32::from_le_bytes(slot.take()?);
    let token = Token::from_bytes(slot.take()?);
    let name = std::str::from_utf8(slot.0.get(..usize::from(len))?).ok()?;
    let fine = domid < DomId::FIRST_RESERVED && is_name(name) && is_member <= 1;
    let member = (is_member == 1).then_some(KeptMember { pid, token });
    fine.then(|| KeptDomain { domid, uid, name: name.to_owned(), member })
}

impl Kept {
    /// The file's bytes. A number without a domain has zeroes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = header(self.last).to_vec();
        for domain in &self.domains {
            let at = slot_of(domain.domid);
            bytes.resize(bytes.len().max(at + SLOT), 0);
            bytes[at..at + SLOT].copy_from_slice(&encode(domain));
        }
        bytes
    }

    /// What a file's bytes say; `None` where the header or any domain is damaged, or names are not unique: then no part is
    /// trusted. A torn slot at the end is a domain that was never told of.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut slots = bytes.chunks_exact(SLOT).take(SLOTS);
        let last = decode_header(slots.next()?)?;
        let mut names = std::collections::HashSet::new();
        let mut domains = Vec::new();
        for (number, slot) in (0..).zip(slots).filter(|(_, slot)| slot.iter().any(|byte| *byte != 0)) {
            let domain = decode(slot).filter(|domain| domain.domid == DomId(number))?;
            if !names.insert(domain.name.clone()) {
                return None;
            }
            domains.push(domain);
        }
        Some(Self { last, domains })
    }
}

fn slot_of(domid: DomId) -> usize {
    (usize::from(domid.0) + 1) * SLOT
}

/// The file, open for a broker that has locked the directory.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    path: PathBuf,
}

impl StateFile {
    /// Reads what the last broker has kept in `dir`; `None` if it has kept nothing, or was stopped.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read; [`Error::Denied`] where it is another user's, or damaged.
    pub(super) fn read(dir: &Path) -> Result<Option<Kept>> {
        let path = dir.join(NAME);
        let what = || format!("read {}", path.display());
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let mut file = match file {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|e| Error::io(what(), e))?,
        };
        let found = file.metadata().map_err(|e| Error::io(what(), e))?;
        let own = nix::unistd::Uid::effective().as_raw();
        if !found.is_file() || found.uid() != own || found.mode() & 0o077 != 0 {
            let what = format!(
                "{} is user {}'s of mode {:o}, expected {own}'s alone",
                path.display(),
                found.uid(),
                found.mode() & 0o7777
            );
            return Err(Error::Denied(what));
        }
        let mut bytes = Vec::new();
        let limit = (SLOTS * SLOT) as u64;
        file.by_ref().take(limit).read_to_end(&mut bytes).map_err(|e| Error::io(what(), e))?;
        let kept = Kept::decode(&bytes);
        kept.map(Some).ok_or_else(|| Error::Denied(format!("{} is damaged", path.display())))
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be written.
    pub(super) fn create(dir: &Path, kept: &Kept) -> Result<Self> {
        let path = dir.join(NAME);
        let what = |e| Error::io(format!("write {}", path.display()), e);
        let new = dir.join(NEW);
        let _ = fs::remove_file(&new);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&new).map_err(what)?;
        file.write_all_at(&kept.encode(), 0).map_err(what)?;
        fs::rename(&new, &path).map_err(what)?;
        Ok(Self { file, path })
    }

    /// Overwrites a domain's slot, and the number that was given last. `None`: there is no such domain.
    ///
    /// # Errors
    /// Those of `pwrite`, for want of space for instance.
    pub(super) fn write(
        &self,
        last: DomId,
        domid: DomId,
        domain: Option<&KeptDomain>,
    ) -> std::io::Result<()> {
        let slot = domain.map_or([0; SLOT], encode);
        self.file.write_all_at(&slot, slot_of(domid) as u64)?;
        self.file.write_all_at(&header(last), 0)
    }

    /// Removes the file.
    pub(super) fn remove(&self) {
        remove(&self.path);
    }
}

/// Removes what a broker has kept in `dir`, if anything.
pub(super) fn remove_from(dir: &Path) {
    remove(&dir.join(NAME));
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(path = %path.display(), %error, "failed to remove the domains' state");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn domain(number: u16, member: bool) -> KeptDomain {
        let member = member.then(|| KeptMember { pid: 7, token: Token::from_bytes([number as u8; 16]) });
        KeptDomain { domid: DomId(number), uid: 1000, name: format!("guest-{number}"), member }
    }

    fn kept() -> Kept {
        let name = "n".repeat(super::super::wire::MAX_NAME);
        let long = KeptDomain { name, ..domain(9, true) };
        Kept { last: DomId(9), domains: vec![domain(0, true), domain(3, false), long] }
    }

    #[test]
    fn file_truncated_anywhere_has_the_domains_that_are_whole() {
        let bytes = kept().encode();
        assert_eq!(Kept::decode(&bytes), Some(kept()));
        for len in 0..bytes.len() {
            let found = Kept::decode(&bytes[..len]);
            let whole = |domain: &&KeptDomain| slot_of(domain.domid) + SLOT <= len;
            let expected = kept().domains.iter().filter(whole).cloned().collect();
            let expected = Kept { last: DomId(9), domains: expected };
            assert_eq!(found, (len >= SLOT).then_some(expected), "{len} bytes");
        }
    }

    #[test]
    fn file_with_any_byte_of_a_slot_changed_is_refused() {
        let bytes = kept().encode();
        let used = [0, slot_of(DomId(0)), slot_of(DomId(3)), slot_of(DomId(9))];
        for at in used.into_iter().flat_map(|at| at..at + SLOT) {
            for flipped in [1, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flipped;
                assert_eq!(Kept::decode(&damaged), None, "byte {at}");
            }
        }
    }

    #[test]
    fn file_of_another_user_or_one_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(StateFile::read(dir.path()).unwrap(), None);
        let file = StateFile::create(dir.path(), &kept()).unwrap();
        assert_eq!(StateFile::read(dir.path()).unwrap(), Some(kept()));
        file.write(DomId(4), DomId(4), Some(&domain(4, true))).unwrap();
        file.write(DomId(4), DomId(9), None).unwrap();
        let changed = StateFile::read(dir.path()).unwrap().unwrap();
        assert_eq!(changed.domains, [domain(0, true), domain(3, false), domain(4, true)]);
        assert_eq!(changed.last, DomId(4));
        let path = dir.path().join(NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(StateFile::read(dir.path()), Err(Error::Denied(_))));
        let other = dir.path().join("other");
        fs::rename(&path, &other).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(StateFile::read(dir.path()).is_err());
        file.remove();
        assert_eq!(StateFile::read(dir.path()).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_domains_are_kept_as_they_are(numbers in proptest::collection::btree_map(0u16..300, any::<bool>(), 0..40)) {
            let domains: Vec<_> = numbers.into_iter().map(|(number, member)| domain(number, member)).collect();
            let kept = Kept { last: DomId(299), domains };
            prop_assert_eq!(Kept::decode(&kept.encode()), Some(kept));
        }

        #[test]
        fn decode_of_any_bytes_is_none_or_encodes_again(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
            if let Some(kept) = Kept::decode(&bytes) {
                prop_assert_eq!(Kept::decode(&kept.encode()), Some(kept));
            }
        }
    }
}
