//! What is said of a port's own station, to the ports that are of no guest.

use super::{At, Forwarding, Switch, put, record};
use super::{BatchSummary, InVlan};
use crate::{Flood, Frame, fdb::PortId};

impl Switch {
    /// Sorts frames by which a port's station is announced, as [`Switch::forward`] does: to all ports that have no address of their own. A
    /// guest's port has one, and its guest is reached by this switch alone. No port is told over a wire.
    pub(crate) fn announce(&mut self, of: PortId, frames: &[Frame]) {
        self.clear_batches();
        if matches!(self.forwarding, Forwarding::Wire) {
            return;
        }
        let Some(Some(port)) = self.switch_ports.get(usize::from(of.0)) else { return };
        let sender = port.sender();
        let in_vlans: Vec<_> = frames.iter().map(|frame| port.vlans().classify(frame)).collect();
        let Switch { switch_ports, ports, touched, is_vlan_aware, .. } = self;
        let mut summary = BatchSummary::default();
        for (index, (frame, in_vlan)) in frames.iter().zip(in_vlans).enumerate() {
            let in_vlan = if *is_vlan_aware { in_vlan.unwrap_or_default() } else { InVlan::default() };
            let at = At { index, in_vlan };
            for other in ports.iter().filter(|other| **other != of) {
                let Some(Some(egress)) = switch_ports.get_mut(usize::from(other.0)) else { continue };
                if egress.sender().address.is_none()
                    && egress.takes_flood(Flood::Broadcast, in_vlan.vlan)
                    && sender.reaches(&egress.sender())
                {
                    record(put(egress, at, frame, *is_vlan_aware), *other, touched, &mut summary);
                }
            }
            self.in_vlans.push(in_vlan);
        }
    }
}
