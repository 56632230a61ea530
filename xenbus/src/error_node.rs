//! The nodes in which the ends of devices report errors to toolstacks, as Linux's `xenbus_dev_error` writes them. Linux
//! never removes them; here an error goes with what it tells of: once the device connects, or with its nodes.

use ring_abi::xs_wire::XsError;
use xenstore::Nodes;
use xenstore::client::Result;

use super::read_tree::readable;

/// The most bytes of an error that are kept.
pub(crate) const MAX_ERROR: usize = 512;

/// The directory of an end's error: `/local/domain/0/error/backend/vbd/3/51712` for the backend
/// `/local/domain/0/backend/vbd/3/51712`. The error is its node `error`: an errno and a text.
pub fn error_directory(end: &str) -> String {
    match split(end) {
        Some((domid, node)) => format!("/local/domain/{domid}/error/{node}"),
        None => format!("error/{}", end.trim_start_matches('/')),
    }
}

/// The domain of an end, and the rest of its path.
fn split(end: &str) -> Option<(&str, &str)> {
    end.strip_prefix("/local/domain/")?.split_once('/')
}

/// Removes an end's error, if there is one, and the directories above it that become empty, below the domain's `error`.
///
/// # Errors
/// Those of the store, but for nodes that are missing or that this domain may not access.
pub fn remove_error(nodes: &mut impl Nodes, end: &str) -> Result<()> {
    let directory = error_directory(end);
    if readable(nodes.read(&directory))?.is_none() {
        return Ok(());
    }
    let mut path = directory.as_str();
    loop {
        match nodes.rm(path) {
            Err(e) if is_inaccessible(&e) => {}
            done => done?,
        }
        let Some((parent, _)) = path.rsplit_once('/') else { return Ok(()) };
        match nodes.directory(parent) {
            Ok(children) if children.is_empty() && !parent.ends_with("/error") => path = parent,
            Err(e) if !is_inaccessible(&e) => return Err(e),
            _ => return Ok(()),
        }
    }
}

/// Cuts an error's text off where it is too long for a node, of whose value a store limits the length: it may quote what
/// others have written.
pub(crate) fn shortened(text: &str) -> &str {
    let end = (0..=MAX_ERROR.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

fn is_inaccessible(error: &xenstore::Error) -> bool {
    matches!(error.store_error(), Some(XsError::ENOENT | XsError::EACCES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::server::{Config, Store};

    #[test]
    fn error_is_removed_with_the_directories_that_become_empty() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        let ends = ["/local/domain/0/backend/vbd/3/51712", "/local/domain/0/backend/vbd/3/51728"];
        for end in ends {
            client.write(&format!("{}/error", error_directory(end)), "5 failed").unwrap();
        }
        remove_error(&mut client, ends[0]).unwrap();
        assert_eq!(client.directory("/local/domain/0/error/backend/vbd/3").unwrap(), ["51728"]);
        for _ in 0..2 {
            remove_error(&mut client, ends[1]).unwrap();
            assert_eq!(client.directory("/local/domain/0/error").unwrap(), [""; 0]);
        }
    }
}
