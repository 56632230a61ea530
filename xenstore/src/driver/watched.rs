//! Which device a watch event speaks of.

use crate::DomId;

/// A device of this driver: the frontend's domain and the device's number.
pub(super) type Id = (DomId, u32);

/// The token of the watch on all backends of a kind.
pub(super) const BACK: &str = "back";

/// What an event asks to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Everything: a node above the devices changed.
    All,
    /// All devices of this frontend's domain.
    Domain(DomId),
    /// This device.
    Device(Id),
    /// Nothing of ours.
    Nothing,
}

/// The token of the watch on a frontend's state.
pub(super) fn front_token((domid, device): Id) -> String {
    format!("front/{domid}/{device}")
}

/// Reads an event; `root` is the node that holds all backends of the kind.
pub(super) fn target(root: &str, path: &str, token: &str) -> Target {
    if let Some(id) = token.strip_prefix("front/") {
        return parse(id.split('/')).map_or(Target::Nothing, Target::Device);
    }
    let Some(below) = path.strip_prefix(root) else { return Target::All };
    let mut parts = below.split('/').skip(1);
    match (parts.next(), parts.next()) {
        (None, _) => Target::All,
        (Some(domid), None) => domid.parse().map_or(Target::Nothing, Target::Domain),
        (Some(domid), Some(device)) => parse([domid, device]).map_or(Target::Nothing, Target::Device),
    }
}

fn parse<'t>(parts: impl IntoIterator<Item = &'t str>) -> Option<Id> {
    let mut parts = parts.into_iter();
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_name_devices() {
        let root = "/local/domain/0/backend/vbd";
        let at = |below: &str| target(root, &format!("{root}{below}"), BACK);
        assert_eq!(at(""), Target::All);
        assert_eq!(at("/3"), Target::Domain(3));
        assert_eq!(at("/3/51712"), Target::Device((3, 51712)));
        assert_eq!(at("/3/51712/state"), Target::Device((3, 51712)));
        assert_eq!(at("/x/51712/state"), Target::Nothing);
        assert_eq!(target(root, "/local/domain/0", BACK), Target::All);
        assert_eq!(target(root, "/anything", &front_token((7, 1))), Target::Device((7, 1)));
        assert_eq!(target(root, "/anything", "front/zz"), Target::Nothing);
    }
}
