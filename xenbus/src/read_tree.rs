//! Reads all keys below a node that another domain writes, within bounds.

use crate::Keys;
use xenstore::Nodes;
use xenstore::client::Result;

/// Most keys read from one end of a device. Eight queues of sixteen ring pages with all features need fewer than 200;
/// what a peer writes beyond the bound is ignored, so that it cannot use up this domain's memory.
const MOST_KEYS: usize = 2048;
/// Depth to which children are read: one level more than `queue-0/ring-ref0` needs.
const DEPTH: u32 = 3;

/// Reads all keys below a node and its children, at most 2048 of them; none when the node is missing. Keys that are
/// removed or made unreadable during the read are left out, without an ENOENT or EACCES.
///
/// A peer may write during the read: the keys are of one moment only in a transaction.
pub fn read_tree(nodes: &mut impl Nodes, path: &str) -> Result<Keys> {
    let mut keys = Keys::new(path);
    descend(nodes, path, "", DEPTH, &mut keys)?;
    Ok(keys)
}

fn descend(nodes: &mut impl Nodes, root: &str, below: &str, depth: u32, keys: &mut Keys) -> Result<()> {
    let here = if below.is_empty() { root.to_owned() } else { format!("{root}/{below}") };
    let Some(names) = readable(nodes.directory(&here))? else { return Ok(()) };
    for name in names {
        if keys.len() >= MOST_KEYS {
            tracing::warn!(
                path = root,
                most = MOST_KEYS,
                "too many keys below a device's node; the rest is ignored"
            );
            return Ok(());
        }
        let key = if below.is_empty() { name } else { format!("{below}/{name}") };
        let Some(value) = readable(nodes.read(&format!("{root}/{key}")))? else { continue };
        // A node that only has children has an empty value and is no key.
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

/// `None` for a node that is missing or unreadable.
pub(crate) fn readable<T>(result: Result<T>) -> Result<Option<T>> {
    use ring_abi::xs_wire::XsError;
    match result {
        Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)) => Ok(None),
        other => other.map(Some),
    }
}
