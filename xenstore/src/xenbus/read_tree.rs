//! Reads what another domain wrote below a node, within bounds.

use crate::client::{Nodes, Result};
use crate::xenbus::keys::Keys;

/// Most keys taken from one end of a device. Eight queues of sixteen ring pages with all features come to fewer
/// than 200; a peer that writes more gets the rest ignored, not our memory.
const MOST_KEYS: usize = 2048;
/// How deep children are followed: `queue-0/ring-ref0`, and one level to spare.
const DEPTH: u32 = 3;

/// All keys below a node, children's too, at most 2048 of them; empty when the node is missing. Keys that are
/// removed, or made unreadable, while this reads are left out.
///
/// A peer may write on while this reads: only in a transaction is the result of one moment.
///
/// # Errors
/// Those of the connection; the store's ENOENT and EACCES are not among them.
pub fn gather(nodes: &mut impl Nodes, path: &str) -> Result<Keys> {
    let mut keys = Keys::new(path);
    descend(nodes, path, "", DEPTH, &mut keys)?;
    Ok(keys)
}

fn descend(nodes: &mut impl Nodes, root: &str, below: &str, depth: u32, keys: &mut Keys) -> Result<()> {
    let here = if below.is_empty() { root.to_owned() } else { format!("{root}/{below}") };
    let Some(names) = visible(nodes.directory(&here))? else { return Ok(()) };
    for name in names {
        if keys.len() >= MOST_KEYS {
            tracing::warn!(
                path = root,
                most = MOST_KEYS,
                "more keys than a device can mean; the rest is ignored"
            );
            return Ok(());
        }
        let key = if below.is_empty() { name } else { format!("{below}/{name}") };
        let Some(value) = visible(nodes.read(&format!("{root}/{key}")))? else { continue };
        // A node that only holds others has an empty value and is no key of its own.
        let only_children = value.is_empty() && depth > 1 && {
            let before = keys.len();
            descend(nodes, root, &key, depth - 1, keys)?;
            keys.len() > before
        };
        if !only_children {
            keys.set(key, String::from_utf8_lossy(&value));
        }
    }
    Ok(())
}

/// What the peer took away from under us is as if it had never been.
fn visible<T>(result: Result<T>) -> Result<Option<T>> {
    use ring_abi::xs_wire::XsError;
    match result {
        Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)) => Ok(None),
        other => other.map(Some),
    }
}
