//! A switch's ports: how they come and go, and what is set for them while they are there.

use std::time::Duration;

use super::{Forwarding, Switch, port::SwitchPort};
use crate::{
    Addresses, Caps, Flags, Lock, PortSettings, StormLimits, Vlans,
    fdb::{Kind, Mac, PortId, Station},
};

impl Switch {
    /// The lowest free port number; `None` when all ports are attached.
    pub fn free_port_id(&self) -> Option<PortId> {
        if self.ports.len() >= self.max_ports() {
            return None;
        }
        let free = self.switch_ports.iter().position(Option::is_none);
        u16::try_from(free.unwrap_or(self.switch_ports.len())).ok().map(PortId)
    }

    /// Adds a port. Its address is its own from now on, unless another port has it: then it is this one's when that is removed.
    pub fn attach(&mut self, port: PortId, caps: Caps, settings: &PortSettings, now: Duration) {
        let index = usize::from(port.0);
        if index >= self.switch_ports.len() {
            self.switch_ports.resize_with(index + 1, || None);
        }
        let attached = SwitchPort::new(caps, settings, now);
        if self.switch_ports[index].replace(attached).is_none() {
            self.ports.push(port);
        }
        self.look_at_vlans();
        self.claim(port);
    }

    /// Whether frames are in VLANs at all.
    fn look_at_vlans(&mut self) {
        let mut ports = self.switch_ports.iter().flatten();
        self.is_vlan_aware =
            matches!(self.forwarding, Forwarding::Learning(_)) && ports.any(|port| port.vlans().are_given());
        self.is_watched = self.is_vlan_aware || !self.mirrors.is_empty();
    }

    /// Sets what a port takes.
    pub fn set_caps(&mut self, port: PortId, caps: Caps) {
        if let Some(Some(attached)) = self.switch_ports.get_mut(usize::from(port.0)) {
            attached.set_caps(caps);
        }
    }

    /// Sets from which addresses a port may send. What was learned of others there is forgotten.
    pub fn set_lock(&mut self, port: PortId, lock: Lock, allowed: Addresses) {
        let Some(Some(attached)) = self.switch_ports.get_mut(usize::from(port.0)) else { return };
        attached.set_lock(lock, allowed);
        self.forget_learned(port);
        self.claim(port);
    }

    /// Sets the VLANs that a port is in. What was learned there is forgotten, and what was given in VLANs that it is not in any more.
    pub fn set_vlans(&mut self, port: PortId, vlans: Vlans) {
        let Some(Some(attached)) = self.switch_ports.get_mut(usize::from(port.0)) else { return };
        let address = attached.sender().address;
        attached.set_vlans(vlans);
        self.look_at_vlans();
        self.forget_learned(port);
        self.claim(port);
        self.claim_for_heirs(address);
    }

    /// Sets a port's flags.
    pub fn set_flags(&mut self, port: PortId, flags: Flags) {
        if let Some(Some(attached)) = self.switch_ports.get_mut(usize::from(port.0)) {
            attached.set_flags(flags);
        }
    }

    /// Sets how much a port may send to many. What it had left is not counted.
    pub fn set_storm(&mut self, port: PortId, limits: StormLimits, now: Duration) {
        if let Some(Some(attached)) = self.switch_ports.get_mut(usize::from(port.0)) {
            attached.set_storm(limits, now);
        }
    }

    fn forget(&mut self, port: PortId) {
        if let Forwarding::Learning(fdb) = &mut self.forwarding {
            fdb.forget(port);
        }
    }

    /// Removes a port's entries but those that were given in its VLANs.
    pub(super) fn forget_learned(&mut self, port: PortId) {
        let Some(Some(attached)) = self.switch_ports.get(usize::from(port.0)) else { return };
        if let Forwarding::Learning(fdb) = &mut self.forwarding {
            let vlans = attached.vlans();
            fdb.flush(|station, at, kind| {
                at == port && (matches!(kind, Kind::Learned | Kind::Own) || !vlans.has(station.vlan()))
            });
        }
    }

    /// Makes a port's address its own in its VLANs.
    pub(super) fn claim(&mut self, port: PortId) {
        let Some(Some(attached)) = self.switch_ports.get(usize::from(port.0)) else { return };
        if let (Forwarding::Learning(fdb), Some(address)) = (&mut self.forwarding, attached.sender().address)
        {
            for vlan in attached.own_vlans() {
                fdb.claim(Station::new(address, vlan), port);
            }
        }
    }

    /// Gives an address that a port has left to another one that has waited for it.
    pub(super) fn claim_for_heirs(&mut self, address: Option<Mac>) {
        for index in 0..self.ports.len() {
            let port = self.ports[index];
            let other = self.switch_ports[usize::from(port.0)].as_ref();
            if address.is_some() && other.is_some_and(|other| other.sender().address == address) {
                self.claim(port);
            }
        }
    }

    /// Whether the address is the port's own in its VLANs, where no other port can have it.
    pub fn has_address(&self, port: PortId, address: Mac) -> bool {
        let attached = self.switch_ports.get(usize::from(port.0)).and_then(Option::as_ref);
        let (Some(fdb), Some(attached)) = (self.fdb(), attached) else { return true };
        attached.own_vlans().all(|vlan| fdb.owner(Station::new(address, vlan), 0) == Some(port))
    }

    /// Removes a port and the forwarding entries of its stations.
    pub fn detach(&mut self, port: PortId) {
        let attached = self.switch_ports.get_mut(usize::from(port.0)).and_then(Option::take);
        self.ports.retain(|other| *other != port);
        self.touched.retain(|other| *other != port);
        self.forget(port);
        self.leave_mirrors(port);
        self.look_at_vlans();
        self.claim_for_heirs(attached.and_then(|attached| attached.sender().address));
    }
}
