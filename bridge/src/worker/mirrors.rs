//! What other threads ask of the worker's mirrors, whose ports have names.

use crate::{Error, Mirror, MirrorError, MirrorInfo, fdb::PortId, mirror::MAX_MIRRORS, switch::SwitchMirror};

use super::Worker;

impl Worker {
    /// Adds a mirror; of one that was there before, the ports that it selects need not be there yet.
    pub(super) fn mirror_add(&mut self, name: String, mirror: Mirror, was_there: bool) -> Result<(), Error> {
        if self.switch.fdb().is_none() {
            return Err(Error::Wire("mirrors"));
        }
        let found = |port: &String| self.find(port).ok_or_else(|| Error::NoSuchPort(port.clone()));
        let all_found = |ports: &[String]| match was_there {
            true => Ok(ports.iter().filter_map(|port| self.find(port)).collect()),
            false => ports.iter().map(found).collect::<Result<Vec<_>, _>>(),
        };
        let (src, dst) = (all_found(&mirror.select_src)?, all_found(&mirror.select_dst)?);
        let output = found(&mirror.output)?;
        if let Err(error) = self.check_mirror(&name, &mirror) {
            return Err(Error::Mirror { name, error });
        }
        let (all, vlans) = (mirror.select_all, mirror.select_vlan.clone());
        self.switch.add_mirror(SwitchMirror { all, src, dst, vlans, output, frames: 0, bytes: 0 });
        self.mirrors.push((name, mirror));
        Ok(())
    }

    fn check_mirror(&self, name: &str, mirror: &Mirror) -> Result<(), MirrorError> {
        mirror.check()?;
        if self.mirrors.iter().any(|(other, _)| other == name) || self.awaits_mirror(name) {
            return Err(MirrorError::Exists);
        }
        let others = self.mirrors.iter().map(|(_, other)| other);
        for other in others.clone() {
            let selects =
                |one: &Mirror, output| one.select_src.contains(output) || one.select_dst.contains(output);
            if selects(mirror, &other.output) || selects(other, &mirror.output) {
                return Err(MirrorError::SelectsOutput);
            }
        }
        if others.count() >= MAX_MIRRORS { Err(MirrorError::TooMany) } else { Ok(()) }
    }

    pub(super) fn mirror_delete(&mut self, name: String) -> Result<(), Error> {
        match self.mirrors.iter().position(|(other, _)| *other == name) {
            Some(index) => {
                self.mirrors.remove(index);
                self.switch.remove_mirror(index);
                Ok(())
            }
            None if self.forget_mirror(&name) => Ok(()),
            None => Err(Error::Mirror { name, error: MirrorError::NoSuchMirror }),
        }
    }

    pub(super) fn mirror_infos(&self) -> Vec<MirrorInfo> {
        let info = |((name, mirror), counted): (&(String, Mirror), &SwitchMirror)| MirrorInfo {
            name: name.clone(),
            mirror: mirror.clone(),
            frames: counted.frames,
            bytes: counted.bytes,
        };
        self.mirrors.iter().zip(self.switch.mirrors()).map(info).collect()
    }

    /// Has the mirrors that name a port which is attached now select its frames.
    pub(super) fn select_in_mirrors(&mut self) {
        for index in 0..self.mirrors.len() {
            let (_, mirror) = &self.mirrors[index];
            let found = |ports: &[String]| -> Vec<PortId> {
                ports.iter().filter_map(|port| self.find(port)).collect()
            };
            let (src, dst) = (found(&mirror.select_src), found(&mirror.select_dst));
            self.switch.select(index, src, dst);
        }
    }

    /// Removes the mirrors of which a port that is removed was the output.
    pub(super) fn end_mirrors_to(&mut self, port: &str) {
        let bridge = &self.name;
        self.mirrors.retain(|(mirror, of)| {
            if of.output == port {
                tracing::info!(bridge, mirror, port, "mirror removed with its output port");
            }
            of.output != port
        });
    }
}
