//! Which of the worker's functions answers which command.

use super::Worker;
use crate::command::Command;

impl Worker {
    /// Executes the commands received; `false` for [`Command::Stop`].
    pub(super) fn run_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Attach(name, port, settings, reply) => {
                    drop(reply.send(self.attach(name, port, settings)));
                }
                Command::Set(name, setting, reply) => drop(reply.send(self.set(&name, setting))),
                Command::Capture(name, options, reply) => drop(reply.send(self.capture(name, options))),
                Command::Detach(name, reply) => drop(reply.send(self.detach(name))),
                Command::Ports(reply) => drop(reply.send(self.port_infos())),
                Command::Fdb(reply) => drop(reply.send(self.fdb_rows())),
                Command::FdbAdd(entry, replaces, reply) => drop(reply.send(self.fdb_add(&entry, replaces))),
                Command::FdbDelete(mac, vlan, port, reply) => {
                    drop(reply.send(self.fdb_delete(mac, vlan, port)));
                }
                Command::FdbFlush(filter, reply) => drop(reply.send(self.fdb_flush(&filter))),
                Command::SetBridge(setting, reply) => drop(reply.send(self.set_bridge(setting))),
                Command::Info(reply) => drop(reply.send(self.info())),
                Command::MirrorAdd(name, mirror, reply) => {
                    drop(reply.send(self.mirror_add(name, mirror, false)))
                }
                Command::MirrorDelete(name, reply) => drop(reply.send(self.mirror_delete(name))),
                Command::Mirrors(reply) => drop(reply.send(self.mirror_infos())),
                Command::GiveAgain(awaited, reply) => drop(reply.send(self.give_again(awaited))),
                Command::Awaited(reply) => drop(reply.send(self.awaited.clone())),
                Command::Stop => return false,
            }
        }
        true
    }
}
