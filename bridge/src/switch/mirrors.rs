//! Copies of frames for mirrors' output ports.

use super::{At, BatchSummary, Switch, port::SwitchPort, record};
use crate::{Frame, fdb::PortId, vlan};

/// A mirror whose ports are attached.
#[derive(Clone, Debug)]
pub struct SwitchMirror {
    /// Frames from all ports.
    pub all: bool,
    /// Frames from these.
    pub src: Vec<PortId>,
    /// Frames that are sent to these.
    pub dst: Vec<PortId>,
    /// Of them those in one of these VLANs; none named: all.
    pub vlans: Vec<u16>,
    /// The port that is sent the copies.
    pub output: PortId,
    /// Frames that were copied.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Switch {
    /// The mirrors, in the order in which they were added.
    pub fn mirrors(&self) -> &[SwitchMirror] {
        &self.mirrors
    }

    /// Adds a mirror, which a wire cannot have. Its output port takes no other part from now on: what was learned there is forgotten.
    pub fn add_mirror(&mut self, mirror: SwitchMirror) {
        let output = mirror.output;
        self.mirrors.push(mirror);
        self.look_at_mirrors();
        self.forget_learned(output);
        self.claim(output);
    }

    /// Removes the mirror at this place.
    pub fn remove_mirror(&mut self, index: usize) {
        if index < self.mirrors.len() {
            self.mirrors.remove(index);
            self.look_at_mirrors();
        }
    }

    /// Changes the ports whose frames the mirror at this place copies.
    pub fn select(&mut self, index: usize, src: Vec<PortId>, dst: Vec<PortId>) {
        if let Some(mirror) = self.mirrors.get_mut(index) {
            mirror.src = src;
            mirror.dst = dst;
        }
    }

    /// Tells the ports which of them are outputs.
    pub(super) fn look_at_mirrors(&mut self) {
        for (index, port) in self.switch_ports.iter_mut().enumerate() {
            if let Some(port) = port {
                port.set_output(self.mirrors.iter().any(|mirror| usize::from(mirror.output.0) == index));
            }
        }
        self.is_watched = self.is_vlan_aware || !self.mirrors.is_empty();
    }

    /// Forgets a port that is removed: mirrors with it as their output end.
    pub(super) fn leave_mirrors(&mut self, port: PortId) {
        self.mirrors.retain(|mirror| mirror.output != port);
        for mirror in &mut self.mirrors {
            mirror.src.retain(|other| *other != port);
            mirror.dst.retain(|other| *other != port);
        }
        self.look_at_mirrors();
    }

    /// Copies a frame that was taken from a port, and sent to its destinations, to the outputs of the mirrors that select it: once to each.
    pub(super) fn mirror(&mut self, from: PortId, at: At, frame: &Frame, summary: &mut BatchSummary) {
        let Switch { switch_ports, touched, mirrors, is_vlan_aware, .. } = self;
        let vlan = if *is_vlan_aware { at.in_vlan.vlan } else { vlan::tag_of(frame).unwrap_or(0) };
        for mirror in mirrors {
            let is_in_vlan = mirror.vlans.is_empty() || mirror.vlans.contains(&vlan);
            let selects = |mirror: &SwitchMirror| {
                mirror.all
                    || mirror.src.contains(&from)
                    || mirror.dst.iter().any(|port| was_sent(switch_ports, *port, at.index))
            };
            if !is_in_vlan || !selects(mirror) {
                continue;
            }
            mirror.frames += 1;
            mirror.bytes += frame.len() as u64;
            if let Some(Some(output)) = switch_ports.get_mut(usize::from(mirror.output.0)) {
                let put = output.put_copy(at, frame, *is_vlan_aware);
                record(put, mirror.output, touched, summary);
            }
        }
    }
}

/// Whether the frame at `index` of the current batch, which no later one has followed, was sent to a port; copies are not.
fn was_sent(ports: &[Option<SwitchPort>], port: PortId, index: usize) -> bool {
    let port = ports.get(usize::from(port.0)).and_then(Option::as_ref);
    port.is_some_and(|port| !port.is_output() && port.has_last(index))
}
