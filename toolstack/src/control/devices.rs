//! Answers requests from what the drivers register of their devices.

use ring_abi::blkif::key::THROTTLE_GROUP;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use xenbus::driver::Registry;
use xenbus::stats::{Limits, Snapshot};
use xenstore::DomId;

use super::bridge_query::BridgeQuery;
use super::protocol::{DeviceId, ImageQuery, StatsQuery, TotalsQuery, shortened};
use super::report::Stats;

/// Devices in one reply, each of at most 5 KiB: 32 are less than a reply's bound.
const PAGE_DEVICES: usize = 32;
/// Domains in one reply, each of at most 10 KiB.
const PAGE_DOMAINS: usize = 16;
/// Devices that are taken from a registry at once, while its driver may have to wait.
const TAKEN: usize = 64;

/// What answers a request about a disk's image.
pub type AnswerImage = Box<dyn Fn(&ImageQuery) -> Result<Value, String> + Send + Sync>;

/// What answers a request about bridges.
pub type AnswerBridge = Box<dyn Fn(BridgeQuery) -> Result<Value, String> + Send + Sync>;

/// The devices that this process serves.
pub struct Devices {
    domid: DomId,
    /// In the order of the kinds' names.
    kinds: BTreeMap<String, Registry>,
    /// Answers requests about images; `None` where none are served.
    images: Option<AnswerImage>,
    /// Answers requests about bridges; `None` where there are none.
    bridges: Option<AnswerBridge>,
}

/// A device, as in the reply to `stats`.
#[derive(Debug, Serialize)]
struct Device {
    #[serde(flatten)]
    id: DeviceId,
    error: Option<String>,
    /// The limits in force, by the names of their keys.
    limits: Option<Map<String, Value>>,
    stats: Option<Stats>,
}

/// A domain, as in the reply to `totals`.
#[derive(Debug, Serialize)]
struct Domain {
    domid: u16,
    /// By kind.
    stats: BTreeMap<String, Total>,
}

/// The sum of the counters of a domain's devices of one kind.
#[derive(Debug, Serialize)]
struct Total {
    devices: u64,
    #[serde(flatten)]
    stats: Stats,
}

impl Devices {
    /// The devices of these kinds, which domain `domid` serves.
    pub fn new<const N: usize>(domid: DomId, kinds: [(String, Registry); N]) -> Devices {
        Devices { domid, kinds: kinds.into(), images: None, bridges: None }
    }

    /// The same, with what answers requests about the images of disks.
    pub fn with_images(self, images: AnswerImage) -> Devices {
        Devices { images: Some(images), ..self }
    }

    /// What `image` answers.
    ///
    /// # Errors
    /// No images are served here, or those of the query.
    pub fn image(&self, query: &ImageQuery) -> Result<Value, String> {
        self.images.as_ref().ok_or("no images are served here")?(query)
    }

    /// The same, with what answers requests about bridges.
    pub fn with_bridges(self, bridges: AnswerBridge) -> Devices {
        Devices { bridges: Some(bridges), ..self }
    }

    /// What `bridge` answers.
    ///
    /// # Errors
    /// There are no bridges here, or not those of the query.
    pub fn bridge(&self, query: BridgeQuery) -> Result<Value, String> {
        self.bridges.as_ref().ok_or("there are no bridges here")?(query)
    }

    /// What `stats` answers.
    ///
    /// # Errors
    /// The query names an unknown kind.
    pub fn stats(&self, query: &StatsQuery) -> Result<Value, String> {
        for kind in [query.kind.as_ref(), query.after.as_ref().map(|after| &after.kind)].into_iter().flatten()
        {
            if !self.kinds.contains_key(kind.as_str()) {
                let known: Vec<_> = self.kinds.keys().map(String::as_str).collect();
                let found = shortened(kind);
                return Err(format!("kind: found {found:?}, expected {}", known.join(" or ")));
            }
        }
        // One more than a reply has tells whether any follow.
        let mut devices: Vec<Device> = Vec::new();
        for (kind, registry) in &self.kinds {
            self.collect(kind, registry, query, &mut devices);
        }
        let more = devices.len() > PAGE_DEVICES;
        devices.truncate(PAGE_DEVICES);
        let next = devices.last().filter(|_| more).map(|device| &device.id);
        Ok(json!({"domid": self.domid.0, "devices": devices, "next": next}))
    }

    /// Adds the devices of a kind that the query asks for, until there are more than a reply has.
    fn collect(&self, kind: &str, registry: &Registry, query: &StatsQuery, devices: &mut Vec<Device>) {
        if query.kind.as_ref().is_some_and(|wanted| wanted != kind) {
            return;
        }
        let mut after = match &query.after {
            Some(after) if after.kind.as_str() > kind => return,
            Some(after) if after.kind == kind => Some((DomId(after.domid), after.devid)),
            _ => None,
        };
        while devices.len() <= PAGE_DEVICES {
            let taken = registry.list(after, TAKEN);
            let Some((last, _)) = taken.last() else { return };
            after = Some(*last);
            for ((domid, devid), info) in taken {
                let is_wanted = query.domid.is_none_or(|wanted| wanted == domid.0)
                    && query.devid.is_none_or(|wanted| wanted == devid);
                if is_wanted && devices.len() <= PAGE_DEVICES {
                    let id = DeviceId { kind: kind.to_owned(), domid: domid.0, devid };
                    let limits = info.stats.as_ref().map(|stats| limits(stats.limits()));
                    let stats = info.stats.map(|stats| Stats::from(&stats.snapshot()));
                    devices.push(Device { id, error: info.error, limits, stats });
                }
            }
        }
    }

    /// What `totals` answers.
    pub fn totals(&self, query: &TotalsQuery) -> Value {
        let mut domains = Vec::new();
        let mut last = query.after;
        let next = loop {
            match self.domain_after(last) {
                None => break None,
                Some(_) if domains.len() == PAGE_DOMAINS => break last,
                Some(domid) => {
                    last = Some(domid.0);
                    if query.domid.is_none_or(|wanted| wanted == domid.0) {
                        domains.push(self.total(domid));
                    }
                }
            }
        };
        let longest = |registry: &Registry| registry.longest_turn().get().as_micros() as u64;
        let turns: BTreeMap<_, _> =
            self.kinds.iter().map(|(kind, registry)| (kind, longest(registry))).collect();
        json!({"domid": self.domid.0, "domains": domains, "next": next, "longest_turn_us": turns})
    }

    /// The first domain with devices behind this one.
    fn domain_after(&self, domid: Option<u16>) -> Option<DomId> {
        let after = domid.map(|domid| (DomId(domid), u32::MAX));
        let first = |registry: &Registry| registry.list(after, 1).first().map(|((domid, _), _)| *domid);
        self.kinds.values().filter_map(first).min()
    }

    fn total(&self, domid: DomId) -> Domain {
        let mut kinds = BTreeMap::new();
        for (kind, registry) in &self.kinds {
            let mut devices = 0;
            let mut sum = Snapshot::default();
            for stats in registry.of_domain(domid).into_iter().filter_map(|info| info.stats) {
                devices += 1;
                sum.merge(&stats.snapshot());
            }
            if devices > 0 {
                kinds.insert(kind.clone(), Total { devices, stats: Stats::from(&sum) });
            }
        }
        Domain { domid: domid.0, stats: kinds }
    }
}

fn limits(limits: Limits) -> Map<String, Value> {
    let values = limits.values.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
    let group = limits.group.map(|group| (THROTTLE_GROUP.to_owned(), group.into()));
    values.chain(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{MAX_REPLY, Request, encode_reply, parse_reply};
    use std::sync::Arc;
    use xenbus::stats::{Count, Operation};

    struct Fixed(u64);

    impl xenbus::stats::Stats for Fixed {
        fn snapshot(&self) -> Snapshot {
            let read = Operation { name: "read", requests: self.0, ..Operation::default() };
            Snapshot {
                operations: vec![read],
                drops: vec![Count { name: "down", count: 1 }],
                ..Snapshot::default()
            }
        }
    }

    /// `count` disks of each of the domains 1 to `domains`, and a vif of domain 2.
    fn devices(domains: u16, count: u32) -> Devices {
        let [vbds, vifs] = [Registry::default(), Registry::default()];
        for domid in 1..=domains {
            (0..count).for_each(|id| vbds.insert((DomId(domid), id), Some(Arc::new(Fixed(id.into())))));
        }
        vifs.set_error((DomId(2), 0), Some("no bridge"));
        Devices::new(DomId(0), [("vbd".into(), vbds), ("vif".into(), vifs)])
    }

    fn ask(devices: &Devices, fields: Value) -> Result<Value, String> {
        let mut request = json!({"version": 1});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let reply = encode_reply(match Request::parse(request.to_string().as_bytes())? {
            Request::Stats(query) => devices.stats(&query),
            Request::Totals(query) => Ok(devices.totals(&query)),
            other => panic!("{other:?} is not about devices"),
        });
        assert!(reply.len() <= MAX_REPLY);
        parse_reply(&reply)
    }

    fn ids(reply: &Value) -> Vec<String> {
        let id = |d: &Value| format!("{}-{}-{}", d["kind"].as_str().unwrap(), d["domid"], d["devid"]);
        reply["devices"].as_array().unwrap().iter().map(id).collect()
    }

    #[test]
    fn stats_of_the_devices_that_are_asked_for_are_in_the_reply() {
        let devices = devices(3, 2);
        let all = ask(&devices, json!({"command": "stats"})).unwrap();
        let expected = ["vbd-1-0", "vbd-1-1", "vbd-2-0", "vbd-2-1", "vbd-3-0", "vbd-3-1", "vif-2-0"];
        assert_eq!(
            (ids(&all), &all["domid"], &all["next"]),
            (expected.map(String::from).to_vec(), &json!(0), &Value::Null)
        );
        let some = |fields| ids(&ask(&devices, fields).unwrap());
        assert_eq!(some(json!({"command": "stats", "domid": 2})), ["vbd-2-0", "vbd-2-1", "vif-2-0"]);
        assert_eq!(some(json!({"command": "stats", "kind": "vif"})), ["vif-2-0"]);
        assert_eq!(some(json!({"command": "stats", "kind": "vbd", "devid": 1, "domid": 3})), ["vbd-3-1"]);
        assert!(some(json!({"command": "stats", "domid": 9})).is_empty());
        let one = ask(&devices, json!({"command": "stats", "devid": 1, "domid": 3})).unwrap();
        assert_eq!(one["devices"][0]["stats"]["operations"]["read"]["requests"], 1);
        assert_eq!(one["devices"][0]["error"], Value::Null);
        let vif = ask(&devices, json!({"command": "stats", "kind": "vif"})).unwrap();
        assert_eq!(
            (&vif["devices"][0]["error"], &vif["devices"][0]["stats"]),
            (&json!("no bridge"), &Value::Null)
        );
        let error = ask(&devices, json!({"command": "stats", "kind": "vtpm"})).unwrap_err();
        assert_eq!(error, "kind: found \"vtpm\", expected vbd or vif");
    }

    #[test]
    fn devices_in_pages_are_each_listed_once() {
        let devices = devices(40, 5);
        let mut after = Value::Null;
        let mut found = Vec::new();
        let mut pages = 0;
        loop {
            let page = ask(&devices, json!({"command": "stats", "after": after})).unwrap();
            found.extend(ids(&page));
            pages += 1;
            after = page["next"].clone();
            if after.is_null() {
                break;
            }
        }
        let mut expected = found.clone();
        expected.dedup();
        assert_eq!((found.len(), expected.len(), pages), (201, 201, 7));
        let last = json!({"kind": "vif", "domid": 2, "devid": 0});
        assert!(ids(&ask(&devices, json!({"command": "stats", "after": last})).unwrap()).is_empty());
    }

    #[test]
    fn totals_are_the_sums_of_each_domains_devices() {
        let devices = devices(40, 5);
        let first = ask(&devices, json!({"command": "totals"})).unwrap();
        assert_eq!((first["domains"].as_array().unwrap().len(), &first["next"]), (16, &json!(16)));
        assert_eq!(first["longest_turn_us"], json!({"vbd": 0, "vif": 0}));
        let domain = &first["domains"][1];
        assert_eq!(
            (&domain["domid"], &domain["stats"]["vif"]),
            (&json!(2), &Value::Null),
            "it is not served"
        );
        let vbd = &domain["stats"]["vbd"];
        assert_eq!((&vbd["devices"], &vbd["operations"]["read"]["requests"]), (&json!(5), &json!(10)));
        assert_eq!(vbd["drops"]["down"], 5);
        let last = ask(&devices, json!({"command": "totals", "after": 32})).unwrap();
        assert_eq!((last["domains"].as_array().unwrap().len(), &last["next"]), (8, &Value::Null));
        let one = ask(&devices, json!({"command": "totals", "domid": 40})).unwrap();
        assert_eq!((one["domains"].as_array().unwrap().len(), &one["domains"][0]["domid"]), (1, &json!(40)));
    }

    #[test]
    fn longest_device_fits_a_page() {
        let registry = Registry::default();
        for id in 0..PAGE_DEVICES as u32 {
            registry.insert((DomId(u16::MAX), u32::MAX - id), Some(Arc::new(blkback::Stats::default())));
            // Each of these is written as six characters.
            registry.set_error((DomId(u16::MAX), u32::MAX - id), Some(&"\u{1}".repeat(5000)));
        }
        let devices = Devices::new(DomId(0), [("vbd".into(), registry)]);
        let reply = ask(&devices, json!({"command": "stats"})).unwrap();
        assert_eq!(reply["devices"].as_array().unwrap().len(), PAGE_DEVICES);
    }
}
