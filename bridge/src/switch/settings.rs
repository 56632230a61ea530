//! What an administrator asks of a switch beside its ports: entries of its forwarding database, and settings of the whole.

use super::{Forwarding, Switch};
use crate::{
    BridgeInfo, BridgeSetting,
    fdb::{FdbError, Kind, Limits, Mac, PortId, Station},
};

impl Switch {
    /// Gives a port an entry in a VLAN, or in each of the port's where none is named, as `bridge fdb add` does; of a port in more than
    /// 64 in that of untagged frames. With `replaces` as `bridge fdb replace`. Nothing is done on a wire.
    ///
    /// # Errors
    /// No entry is changed.
    pub fn fdb_add(
        &mut self,
        (mac, vlan): (Mac, Option<u16>),
        (port, kind): (PortId, Kind),
        replaces: bool,
        now_s: u32,
    ) -> Result<(), FdbError> {
        let vlans = self.vlans_of(port, vlan)?;
        let Forwarding::Learning(fdb) = &mut self.forwarding else { return Ok(()) };
        let before: Vec<_> = vlans.iter().map(|vlan| fdb.entry(Station::new(mac, *vlan), now_s)).collect();
        for (index, vlan) in vlans.iter().enumerate() {
            let added = fdb.add(Station::new(mac, *vlan), (port, kind), replaces, now_s);
            if added.is_err() {
                for (vlan, before) in vlans[..index].iter().zip(&before) {
                    fdb.restore(Station::new(mac, *vlan), *before, now_s);
                }
                return added;
            }
        }
        Ok(())
    }

    /// Removes a port's entry, also a learned one, in a VLAN, or in each where none is named.
    ///
    /// # Errors
    /// [`FdbError::NoSuchEntry`] where there is none; [`FdbError::Own`].
    pub fn fdb_delete(
        &mut self,
        (mac, vlan): (Mac, Option<u16>),
        port: PortId,
        now_s: u32,
    ) -> Result<(), FdbError> {
        let vlans = self.vlans_of(port, vlan)?;
        let Forwarding::Learning(fdb) = &mut self.forwarding else { return Ok(()) };
        let mut deleted = Err(FdbError::NoSuchEntry);
        for vlan in vlans {
            match fdb.delete(Station::new(mac, vlan), port, now_s) {
                Err(FdbError::NoSuchEntry) => {}
                Err(error) => return Err(error),
                Ok(()) => deleted = Ok(()),
            }
        }
        self.claim_for_heirs(Some(mac));
        deleted
    }

    /// Removes the entries for which `is_one` is true of station, port and kind, but ports' own; returns their number.
    pub fn fdb_flush(&mut self, is_one: impl Fn(Station, PortId, Kind) -> bool) -> usize {
        let Forwarding::Learning(fdb) = &mut self.forwarding else { return 0 };
        let removed = fdb.flush(|station, port, kind| kind != Kind::Own && is_one(station, port, kind));
        for index in 0..self.ports.len() {
            self.claim(self.ports[index]);
        }
        removed
    }

    /// The VLANs that an entry of a port is for.
    fn vlans_of(&self, port: PortId, vlan: Option<u16>) -> Result<Vec<u16>, FdbError> {
        let port = self.switch_ports.get(usize::from(port.0)).and_then(Option::as_ref);
        let port = port.ok_or(FdbError::NoSuchEntry)?;
        match vlan {
            None => Ok(port.own_vlans().collect()),
            Some(vlan) if port.vlans().has(vlan) => Ok(vec![vlan]),
            Some(_) => Err(FdbError::Vlan),
        }
    }

    /// Changes a setting of the whole, which is a valid one; a wire has none.
    pub fn set(&mut self, setting: BridgeSetting) {
        let Forwarding::Learning(fdb) = &mut self.forwarding else { return };
        match setting {
            BridgeSetting::AgeingTime(age_s) => fdb.set_limits(Limits { age_s, ..fdb.limits() }),
            BridgeSetting::FdbMaxLearned(entries) => {
                fdb.set_limits(Limits { entries: entries as usize, ..fdb.limits() });
            }
            BridgeSetting::GroupFwdMask(mask) => self.group_fwd_mask = mask,
        }
    }

    /// The settings of the whole; a wire has none.
    pub fn info(&self) -> Option<BridgeInfo> {
        let fdb = self.fdb()?;
        Some(BridgeInfo {
            ageing_time_s: fdb.limits().age_s,
            fdb_max_learned: fdb.limits().entries as u32,
            fdb_n_learned: fdb.learned() as u32,
            group_fwd_mask: self.group_fwd_mask,
        })
    }
}
