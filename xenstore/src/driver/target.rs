//! Maps a watch event to the devices it concerns.

use ring_abi::DomId;

/// A device of this driver: the frontend's domain and the device's number.
pub(super) type Id = (DomId, u32);

/// The token of the watch on all backends of a kind.
pub(super) const BACKEND_TOKEN: &str = "back";

/// The devices whose state has to be read after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// All of them: a node above the devices changed.
    All,
    /// All devices of this frontend's domain.
    Domain(DomId),
    /// This device.
    Device(Id),
    /// None of this driver's.
    Nothing,
}

/// The token of the watch on a frontend's state.
pub(super) fn frontend_token((domid, device): Id) -> String {
    format!("front/{domid}/{device}")
}

/// Parses an event; `root` is the node above all backends of the kind.
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
    fn event_path_or_token_gives_its_devices() {
        let root = "/local/domain/0/backend/vbd";
        let at = |below: &str| target(root, &format!("{root}{below}"), BACKEND_TOKEN);
        assert_eq!(at(""), Target::All);
        assert_eq!(at("/3"), Target::Domain(DomId(3)));
        assert_eq!(at("/3/51712"), Target::Device((DomId(3), 51712)));
        assert_eq!(at("/3/51712/state"), Target::Device((DomId(3), 51712)));
        assert_eq!(at("/x/51712/state"), Target::Nothing);
        assert_eq!(target(root, "/local/domain/0", BACKEND_TOKEN), Target::All);
        let token = frontend_token((DomId(7), 1));
        assert_eq!(target(root, "/anything", &token), Target::Device((DomId(7), 1)));
        assert_eq!(target(root, "/anything", "front/zz"), Target::Nothing);
    }
}
