//! A blkfront disk as the blocks of an NBD export: each NBD command becomes as many ring requests as it needs, which
//! are submitted without waiting for their completion.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use blkfront::split::{MAX_REQUEST_BYTES, split};
use blkfront::{Buffer, Completion, Disk, Operation, Request};
use nix::errno::Errno;
use ring_abi::blkif::{SECTOR, Status};

use super::buffers::DiskBuffers;
use crate::nbd::{Blocks, Export, Op, Outcome};

/// Requests that wait for a slot of the ring, at which no further command is taken.
const MAX_WAITING: usize = 1024;

/// What is written of a command for zeroes, a request at most.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
/// Bytes of a command for zeroes that are in flight at once.
const ZEROES_IN_FLIGHT: u64 = 4 << 20;

/// A disk, and the commands in flight.
pub struct DiskBlocks {
    disk: Disk,
    export: Export,
    commands: HashMap<u64, PendingCommand>,
    waiting: VecDeque<RingRequest>,
    /// Requests in the ring by their token.
    in_flight: HashMap<u64, RingRequest>,
    last_token: u64,
    buffers: DiskBuffers,
    completions: Vec<Completion>,
    finished: Vec<(u64, Outcome)>,
}

/// A command in flight.
struct PendingCommand {
    /// The data read, or to be written; none for zeroes.
    data: Vec<u8>,
    /// Bytes of the disk that are still to be filled with zeroes.
    zeroes: Range<u64>,
    /// The number of requests that have not completed.
    remaining: usize,
    failed: Option<i32>,
    /// Whether a flush is to follow the write.
    durable: bool,
    is_read: bool,
}

/// One request of a command.
struct RingRequest {
    command: u64,
    operation: Operation,
    sector: u64,
    /// The range of the command's data; of zeroes and discards only its length counts.
    bytes: Range<usize>,
}

impl DiskBlocks {
    /// Wraps an open disk with its buffers, which is exported by this name.
    pub fn new(disk: Disk, name: String, buffers: DiskBuffers) -> DiskBlocks {
        let export = Export { name, size: 0, block: 512, read_only: true, trim: false };
        let mut blocks = DiskBlocks {
            disk,
            export,
            commands: HashMap::new(),
            waiting: VecDeque::new(),
            in_flight: HashMap::new(),
            last_token: 0,
            buffers,
            completions: Vec::new(),
            finished: Vec::new(),
        };
        blocks.update_export();
        blocks
    }

    /// Follows the disk's properties, which its backend may change.
    fn update_export(&mut self) {
        let Some(info) = self.disk.info() else { return };
        self.export.size = info.sectors * SECTOR as u64;
        self.export.block = info.sector_size;
        self.export.read_only = info.read_only;
        self.export.trim = info.discard.is_some();
    }

    /// Returns the disk, to be closed.
    pub fn into_disk(self) -> Disk {
        self.disk
    }

    /// Splits a command into requests, or finishes it at once if it needs none.
    fn start(&mut self, id: u64, op: Op) {
        let (operation, offset, command) = match op {
            Op::Read { offset, len } => {
                (Operation::Read, offset, PendingCommand::new(vec![0; len as usize], true, false))
            }
            Op::Write { offset, data, durable } => {
                (Operation::Write, offset, PendingCommand::new(data, false, durable))
            }
            Op::Flush => (Operation::Flush, 0, PendingCommand::new(Vec::new(), false, false)),
            Op::Trim { offset, len, durable } => return self.discard(id, offset, len, durable),
            Op::WriteZeroes { offset, len, durable } => {
                let zeroes = offset..offset + u64::from(len);
                let command = PendingCommand { zeroes, ..PendingCommand::new(Vec::new(), false, durable) };
                self.commands.insert(id, command);
                return self.write_zeroes(id);
            }
        };
        let len = command.data.len();
        self.commands.insert(id, command);
        if operation == Operation::Flush {
            return self.flush(id);
        }
        for chunk in split(offset, len, self.buffers.request_bytes(&self.disk)) {
            let sector = chunk.sector();
            self.enqueue(RingRequest { command: id, operation, sector, bytes: chunk.bytes });
        }
    }

    fn discard(&mut self, id: u64, offset: u64, len: u32, durable: bool) {
        self.commands.insert(id, PendingCommand::new(Vec::new(), false, durable));
        let sector = offset / SECTOR as u64;
        let bytes = 0..len as usize;
        self.enqueue(RingRequest { command: id, operation: Operation::Discard, sector, bytes });
    }

    /// Enqueues writes of the next zeroes of a command.
    fn write_zeroes(&mut self, id: u64) {
        let Some(command) = self.commands.get_mut(&id) else { return };
        let start = command.zeroes.start;
        let len = (command.zeroes.end - start).min(ZEROES_IN_FLIGHT);
        command.zeroes.start += len;
        let max = self.buffers.request_bytes(&self.disk).min(ZEROES.len());
        for chunk in split(start, len as usize, max) {
            let sector = chunk.sector();
            self.enqueue(RingRequest {
                command: id,
                operation: Operation::Write,
                sector,
                bytes: 0..chunk.bytes.len(),
            });
        }
    }

    fn enqueue(&mut self, request: RingRequest) {
        if let Some(command) = self.commands.get_mut(&request.command) {
            command.remaining += 1;
            self.waiting.push_back(request);
        }
    }

    /// Enqueues the flush of a command whose other requests have completed; finishes it if the backend has no flush.
    fn flush(&mut self, id: u64) {
        if self.disk.info().is_some_and(|info| info.flush) {
            self.enqueue(RingRequest { command: id, operation: Operation::Flush, sector: 0, bytes: 0..0 });
        } else {
            self.finish(id);
        }
    }

    /// Submits waiting requests while the ring has slots and there are buffers.
    fn fill_ring(&mut self) -> io::Result<()> {
        while let Some(request) = self.waiting.pop_front() {
            let RingRequest { operation, sector, .. } = request;
            let buffer = match operation {
                Operation::Flush | Operation::Discard => None,
                _ if request.bytes.len() > MAX_REQUEST_BYTES => match self.take_large(request.bytes.len())? {
                    Some(buffer) => Some(buffer),
                    // It is not waited for.
                    None => {
                        self.divide(request);
                        continue;
                    }
                },
                _ => match self.buffers.take(&self.disk).map_err(io::Error::other)? {
                    Some(buffer) => Some(buffer),
                    // The request waits for one that is in use.
                    None => {
                        self.waiting.push_front(request);
                        break;
                    }
                },
            };
            if let (Operation::Write, Some(buffer), Some(command)) =
                (operation, &buffer, self.commands.get(&request.command))
            {
                match command.data.is_empty() {
                    true => buffer.fill(&ZEROES[..request.bytes.len()]),
                    false => buffer.fill(&command.data[request.bytes.clone()]),
                }
            }
            let bytes = request.bytes.len();
            self.last_token += 1;
            match self.disk.submit(Request { token: self.last_token, operation, sector, bytes, buffer }) {
                Ok(()) => drop(self.in_flight.insert(self.last_token, request)),
                Err(back) => {
                    self.put(back.buffer);
                    self.waiting.push_front(request);
                    break;
                }
            }
        }
        self.disk.commit().map_err(io::Error::other)
    }

    /// Takes a buffer for a request of so many bytes, if the backend supports it and there is one.
    fn take_large(&mut self, bytes: usize) -> io::Result<Option<Buffer>> {
        if bytes > self.disk.max_request_bytes() {
            return Ok(None);
        }
        self.buffers.take_large(&self.disk, bytes).map_err(io::Error::other)
    }

    /// Divides a request that is not in flight into smaller ones, which come next.
    fn divide(&mut self, request: RingRequest) {
        let RingRequest { command, operation, sector, bytes } = request;
        let Some(pending) = self.commands.get_mut(&command) else { return };
        pending.remaining -= 1;
        let chunks: Vec<_> = split(sector * SECTOR as u64, bytes.len(), MAX_REQUEST_BYTES).collect();
        for chunk in chunks.iter().rev() {
            let sector = chunk.sector();
            let bytes = bytes.start + chunk.bytes.start..bytes.start + chunk.bytes.end;
            pending.remaining += 1;
            self.waiting.push_front(RingRequest { command, operation, sector, bytes });
        }
    }

    fn put(&mut self, buffer: Option<Buffer>) {
        if let Some(buffer) = buffer {
            self.buffers.put(buffer);
        }
    }

    /// Processes the requests that have completed.
    fn reap(&mut self) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        let polled = self.disk.poll(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        polled.map(drop).map_err(io::Error::other)
    }

    fn complete(&mut self, completion: Completion) {
        let Some(request) = self.in_flight.remove(&completion.request.token) else { return };
        let is_discard = request.operation == Operation::Discard;
        let error = completion.check().is_err().then_some(match completion.status {
            Status::EOPNOTSUPP if is_discard => Errno::EOPNOTSUPP as i32,
            _ => Errno::EIO as i32,
        });
        let buffer = completion.request.buffer;
        // It was in flight when a backend connected that supports smaller ones only.
        let is_large = !is_discard && request.bytes.len() > MAX_REQUEST_BYTES;
        if completion.status == Status::EOPNOTSUPP && is_large {
            self.put(buffer);
            return self.divide(request);
        }
        if let Some(command) = self.commands.get_mut(&request.command) {
            command.failed = command.failed.or(error);
            command.remaining -= 1;
            if let (Operation::Read, None, Some(buffer)) = (request.operation, error, &buffer) {
                buffer.copy_to(&mut command.data[request.bytes.clone()]);
            }
            if command.remaining == 0 && command.failed.is_none() && !command.zeroes.is_empty() {
                self.write_zeroes(request.command);
            } else if command.remaining == 0 {
                let durable = std::mem::take(&mut command.durable) && command.failed.is_none();
                if durable { self.flush(request.command) } else { self.finish(request.command) }
            }
        }
        self.put(buffer);
    }

    fn finish(&mut self, id: u64) {
        let Some(command) = self.commands.remove(&id) else { return };
        let data = if command.is_read { command.data } else { Vec::new() };
        self.finished.push((id, command.failed.map_or(Ok(data), Err)));
    }
}

impl PendingCommand {
    fn new(data: Vec<u8>, is_read: bool, durable: bool) -> PendingCommand {
        PendingCommand { data, zeroes: 0..0, remaining: 0, failed: None, durable, is_read }
    }
}

impl Blocks for DiskBlocks {
    fn export(&self) -> &Export {
        &self.export
    }

    fn set_in_use(&mut self, in_use: bool) -> io::Result<()> {
        self.disk.set_in_use(in_use).map_err(io::Error::other)
    }

    fn submit(&mut self, id: u64, op: Op) -> Result<(), Op> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(op);
        }
        self.start(id, op);
        Ok(())
    }

    fn poll(&mut self, completed: &mut Vec<(u64, Outcome)>) -> io::Result<()> {
        self.reap()?;
        if self.disk.is_closed() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the disk is closed"));
        }
        self.fill_ring()?;
        completed.append(&mut self.finished);
        Ok(())
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.disk.process_events().map_err(io::Error::other)?;
        self.update_export();
        let ready = self.disk.arm().map_err(io::Error::other)?;
        Ok(ready || self.disk.is_closed() || !self.finished.is_empty())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.disk.fd()
    }
}
