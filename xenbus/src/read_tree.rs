//! Reads all keys below a node that another domain writes, within bounds.

use crate::Keys;
use xenstore::Nodes;
use xenstore::client::Result;

/// Most keys read from one end of a device. Eight queues of sixteen ring pages with all features need fewer than 200;
/// what a peer writes beyond the bound is ignored, so that it cannot use up this domain's memory.
const MOST_KEYS: usize = 2048;
/// Keys read before the bound is looked at: as many as one round trip to the store brings.
const AT_ONCE: usize = 32;
/// Depth to which children are read: one level more than `queue-0/ring-ref0` needs.
const DEPTH: u32 = 3;

/// Reads all keys below a node and its children, at most 2048 of them; none when the node is missing. Keys that are
/// removed or made unreadable during the read are left out, without an ENOENT or EACCES.
///
/// A peer may write during the read: the keys are of one moment only in a transaction.
pub fn read_tree(nodes: &mut impl Nodes, path: &str) -> Result<Keys> {
    let names = nodes.directory(path);
    read_listed(nodes, path, names)
}

/// Reads a node's tree as [`read_tree`], whose children's names were read before.
pub(crate) fn read_listed(nodes: &mut impl Nodes, path: &str, names: Result<Vec<String>>) -> Result<Keys> {
    let mut keys = Keys::new(path);
    if let Some(names) = readable(names)? {
        read_children(nodes, path, "", &names, DEPTH, &mut keys)?;
    }
    Ok(keys)
}

fn read_children(
    nodes: &mut impl Nodes,
    root: &str,
    below: &str,
    names: &[String],
    depth: u32,
    keys: &mut Keys,
) -> Result<()> {
    for names in names.chunks(AT_ONCE) {
        let found: Vec<String> = names.iter().map(|name| key_of(below, name)).collect();
        for (key, value) in found.iter().zip(read_each(nodes, root, &found)?) {
            if keys.len() >= MOST_KEYS {
                tracing::warn!(
                    path = root,
                    most = MOST_KEYS,
                    "too many keys below a device's node; the rest is ignored"
                );
                return Ok(());
            }
            let Some(value) = value else { continue };
            // A node that only has children has an empty value and is no key.
            let only_children = value.is_empty() && depth > 1 && {
                let before = keys.len();
                if let Some(names) = readable(nodes.directory(&format!("{root}/{key}")))? {
                    read_children(nodes, root, key, &names, depth - 1, keys)?;
                }
                keys.len() > before
            };
            if !only_children {
                keys.set(key.clone(), String::from_utf8_lossy(&value));
            }
        }
    }
    Ok(())
}

fn key_of(below: &str, name: &str) -> String {
    if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") }
}

/// The values of these keys; `None` for one that is missing or unreadable.
fn read_each(nodes: &mut impl Nodes, root: &str, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>> {
    let paths: Vec<String> = keys.iter().map(|key| format!("{root}/{key}")).collect();
    nodes.read_each(&paths)?.into_iter().map(readable).collect()
}

/// Reads those keys below a node and its children that are `known`, as [`read_tree`] does; in a known name `%u` stands for a
/// number. What else a peer has written costs no request: there is one for each known key, and one for each node above them.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = xenstore::server::Store::spawn(xenstore::server::Config::default())?;
/// # let mut client = store.client()?;
/// use xenstore::Nodes;
///
/// for key in ["ring-ref0", "ring-ref1", "ring-refs", "more", "queue-0/tx-ring-ref", "queue-0/more"] {
///     client.write(&format!("/device/{key}"), "8")?;
/// }
/// let keys = xenbus::read_known(&mut client, "/device", &["ring-ref%u", "queue-0/tx-ring-ref", "state"])?;
/// assert_eq!(keys.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["queue-0/tx-ring-ref", "ring-ref0", "ring-ref1"]);
/// # Ok(())
/// # }
/// ```
pub fn read_known(nodes: &mut impl Nodes, path: &str, known: &[&str]) -> Result<Keys> {
    let names = nodes.directory(path);
    read_known_listed(nodes, path, names, known)
}

/// Reads known keys as [`read_known`], of a node whose children's names were read before.
pub(crate) fn read_known_listed(
    nodes: &mut impl Nodes,
    path: &str,
    names: Result<Vec<String>>,
    known: &[&str],
) -> Result<Keys> {
    let mut keys = Keys::new(path);
    known_below(nodes, path, "", names, known, &mut keys)?;
    Ok(keys)
}

fn known_below(
    nodes: &mut impl Nodes,
    root: &str,
    below: &str,
    names: Result<Vec<String>>,
    known: &[&str],
    keys: &mut Keys,
) -> Result<()> {
    let Some(names) = readable(names)? else { return Ok(()) };
    let (wanted, others): (Vec<String>, Vec<String>) = names
        .iter()
        .map(|name| key_of(below, name))
        .partition(|key| known.iter().any(|known| matches_known(key, known)));
    let mut above = others;
    for wanted in wanted.chunks(AT_ONCE) {
        for (key, value) in wanted.iter().zip(read_each(nodes, root, wanted)?) {
            match value {
                Some(value) if keys.len() < MOST_KEYS => {
                    keys.set(key.clone(), String::from_utf8_lossy(&value));
                }
                _ => above.push(key.clone()),
            }
        }
        if keys.len() >= MOST_KEYS {
            break;
        }
    }
    above.retain(|key| known.iter().any(|known| is_above(key, known)));
    above.iter().try_for_each(|key| {
        let names = nodes.directory(&format!("{root}/{key}"));
        known_below(nodes, root, key, names, known, keys)
    })
}

/// Whether a key has a known name.
fn matches_known(key: &str, known: &str) -> bool {
    let Some((before, after)) = known.split_once("%u") else { return key == known };
    let Some(rest) = key.strip_prefix(before) else { return false };
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    digits > 0 && matches_known(&rest[digits..], after)
}

/// Whether keys with a known name are below a node.
fn is_above(node: &str, known: &str) -> bool {
    known.match_indices('/').any(|(slash, _)| matches_known(node, &known[..slash]))
}

/// `None` for a node that is missing or unreadable.
pub(crate) fn readable<T>(result: Result<T>) -> Result<Option<T>> {
    use ring_abi::xs_wire::XsError;
    match result {
        Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)) => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_in_a_known_name_is_any_and_nothing_else() {
        assert!(matches_known("ring-ref15", "ring-ref%u") && matches_known("queue-3/tx", "queue-%u/tx"));
        for key in ["ring-ref", "ring-refx", "ring-ref1x", "xring-ref1", "ring-ref-1"] {
            assert!(!matches_known(key, "ring-ref%u"), "{key}");
        }
        assert!(is_above("queue-3", "queue-%u/tx") && !is_above("queue-x", "queue-%u/tx"));
        assert!(!is_above("state", "state") && !is_above("queue-3/tx", "queue-%u/tx"));
    }
}
