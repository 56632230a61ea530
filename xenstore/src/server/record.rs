//! A change to what the store holds, as it is kept for a successor: bytes of a journal.
//!
//! Numbers are little-endian. A text or value is its length, `u32`, and its bytes; permissions are their number, `u16`, and
//! for each a domain `u16` and an access `u8`.

use ring_abi::DomId;

use super::access::Perms;
use super::path::Path;
use super::quota::{Quota, Quotas};
use crate::permission::{Access, Permission};

/// The number that means "no domain".
const NO_DOMAIN: u16 = u16::MAX;
const ACCESSES: [Access; 4] = [Access::None, Access::Read, Access::Write, Access::Both];

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A node and its missing ancestors are created.
    Create { generation: u64, path: Path, perms: Perms },
    /// A node's value is set.
    Value { generation: u64, path: Path, value: Vec<u8> },
    /// A node's permissions are set.
    Perms { generation: u64, path: Path, perms: Perms },
    /// A node is removed with all below it.
    Remove { generation: u64, path: Path },
    /// A whole node of an image, after its parent.
    Node { changed: u64, children_changed: u64, path: Path, perms: Perms, value: Vec<u8> },
    /// What is known of a domain but its nodes.
    Domain(DomainRecord),
    /// A domain is forgotten.
    Released(DomId),
    /// The quotas of new domains.
    Quotas(Quotas),
    /// The image is complete.
    End { generation: u64 },
}

/// A domain but for its nodes and connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DomainRecord {
    pub(super) domid: DomId,
    pub(super) introduced: bool,
    pub(super) target: Option<DomId>,
    pub(super) features: u32,
    pub(super) quotas: Quotas,
}

impl Record {
    /// Appends the record's bytes.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Create { generation, path, perms } => create(out, *generation, path, perms),
            Record::Value { generation, path, value } => set_value(out, *generation, path, value),
            Record::Perms { generation, path, perms } => set_perms(out, *generation, path, perms),
            Record::Remove { generation, path } => remove(out, *generation, path),
            Record::Node { changed, children_changed, path, perms, value } => {
                node(out, [*changed, *children_changed], path, perms, value);
            }
            Record::Domain(domain) => {
                out.push(6);
                out.extend(domain.domid.0.to_le_bytes());
                out.push(domain.introduced.into());
                out.extend(domain.target.map_or(NO_DOMAIN, |target| target.0).to_le_bytes());
                out.extend(domain.features.to_le_bytes());
                put_quotas(out, &domain.quotas);
            }
            Record::Released(domid) => {
                out.push(7);
                out.extend(domid.0.to_le_bytes());
            }
            Record::Quotas(quotas) => {
                out.push(8);
                put_quotas(out, quotas);
            }
            Record::End { generation } => head(out, 9, *generation),
        }
    }

    /// Takes a record off `bytes`; `None` if they do not begin with a valid one.
    pub(super) fn decode(bytes: &mut &[u8]) -> Option<Record> {
        let [kind] = take(bytes)?;
        Some(match kind {
            1 => Record::Create { generation: number(bytes)?, path: path(bytes)?, perms: perms(bytes)? },
            2 => {
                Record::Value { generation: number(bytes)?, path: path(bytes)?, value: block(bytes)?.into() }
            }
            3 => Record::Perms { generation: number(bytes)?, path: path(bytes)?, perms: perms(bytes)? },
            4 => Record::Remove { generation: number(bytes)?, path: path(bytes)? },
            5 => Record::Node {
                changed: number(bytes)?,
                children_changed: number(bytes)?,
                path: path(bytes)?,
                perms: perms(bytes)?,
                value: block(bytes)?.into(),
            },
            6 => Record::Domain(DomainRecord {
                domid: ordinary(u16::from_le_bytes(take(bytes)?))?,
                introduced: flag(bytes)?,
                target: match u16::from_le_bytes(take(bytes)?) {
                    NO_DOMAIN => None,
                    target => Some(ordinary(target)?),
                },
                features: u32::from_le_bytes(take(bytes)?),
                quotas: quotas(bytes)?,
            }),
            7 => Record::Released(ordinary(u16::from_le_bytes(take(bytes)?))?),
            8 => Record::Quotas(quotas(bytes)?),
            9 => Record::End { generation: number(bytes)? },
            _ => return None,
        })
    }
}

/// Appends [`Record::Create`].
pub(super) fn create(out: &mut Vec<u8>, generation: u64, path: &Path, perms: &Perms) {
    head(out, 1, generation);
    put(out, path.as_str().as_bytes());
    put_perms(out, perms);
}

/// Appends [`Record::Value`].
pub(super) fn set_value(out: &mut Vec<u8>, generation: u64, path: &Path, value: &[u8]) {
    head(out, 2, generation);
    put(out, path.as_str().as_bytes());
    put(out, value);
}

/// Appends [`Record::Perms`].
pub(super) fn set_perms(out: &mut Vec<u8>, generation: u64, path: &Path, perms: &Perms) {
    head(out, 3, generation);
    put(out, path.as_str().as_bytes());
    put_perms(out, perms);
}

/// Appends [`Record::Remove`].
pub(super) fn remove(out: &mut Vec<u8>, generation: u64, path: &Path) {
    head(out, 4, generation);
    put(out, path.as_str().as_bytes());
}

/// Appends [`Record::Node`].
pub(super) fn node(
    out: &mut Vec<u8>,
    [changed, children_changed]: [u64; 2],
    path: &Path,
    perms: &Perms,
    value: &[u8],
) {
    head(out, 5, changed);
    out.extend(children_changed.to_le_bytes());
    put(out, path.as_str().as_bytes());
    put_perms(out, perms);
    put(out, value);
}

fn head(out: &mut Vec<u8>, kind: u8, generation: u64) {
    out.push(kind);
    out.extend(generation.to_le_bytes());
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

fn put_perms(out: &mut Vec<u8>, perms: &Perms) {
    out.extend((perms.len() as u16).to_le_bytes());
    for Permission { domid, access } in perms.iter() {
        out.extend(domid.0.to_le_bytes());
        out.push(ACCESSES.iter().position(|a| a == access).unwrap_or(0) as u8);
    }
}

fn put_quotas(out: &mut Vec<u8>, quotas: &Quotas) {
    Quota::ALL.into_iter().for_each(|quota| out.extend(quotas.get(quota).to_le_bytes()));
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_le_bytes)
}

fn flag(bytes: &mut &[u8]) -> Option<bool> {
    let [flag] = take(bytes)?;
    (flag <= 1).then_some(flag == 1)
}

fn block<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let len = u32::from_le_bytes(take(bytes)?);
    let (taken, rest) = bytes.split_at_checked(usize::try_from(len).ok()?)?;
    *bytes = rest;
    Some(taken)
}

fn path(bytes: &mut &[u8]) -> Option<Path> {
    let request = Path::parse(block(bytes)?, DomId::DOM0, 0, true).ok()?;
    // A relative one is none of the store's.
    (request.prefix == 0).then_some(request.path)
}

fn perms(bytes: &mut &[u8]) -> Option<Perms> {
    let count = u16::from_le_bytes(take(bytes)?);
    let perms: Option<Vec<Permission>> = (0..count).map(|_| permission(bytes)).collect();
    perms.filter(|perms| !perms.is_empty()).map(Perms::from)
}

fn permission(bytes: &mut &[u8]) -> Option<Permission> {
    let domid = DomId(u16::from_le_bytes(take(bytes)?));
    let [access] = take(bytes)?;
    Some(Permission::new(domid, *ACCESSES.get(usize::from(access))?))
}

fn quotas(bytes: &mut &[u8]) -> Option<Quotas> {
    let mut quotas = Quotas::default();
    for quota in Quota::ALL {
        quotas.set(quota, u32::from_le_bytes(take(bytes)?));
    }
    Some(quotas)
}

fn ordinary(domid: u16) -> Option<DomId> {
    (domid < DomId::FIRST_RESERVED.0).then_some(DomId(domid))
}
