//! A disk shared by several threads: one of its own owns it, the others ask.

use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::device::Disk;
use crate::error::{Error, Result};
use crate::handshake::Info;

/// One thing asked of the disk's thread.
enum Ask {
    Read(u64, usize, Sender<Result<Vec<u8>>>),
    Write(u64, Vec<u8>, Sender<Result<Vec<u8>>>),
    Flush(Sender<Result<Vec<u8>>>),
}

struct Inner {
    asks: Mutex<Option<Sender<Ask>>>,
    wake: Arc<EventFd>,
    info: Arc<Mutex<Info>>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

/// A disk usable from several threads at once. The disk is closed when the last clone is dropped, or by
/// [`Handle::close`].
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

impl Handle {
    /// Gives the disk to a thread of its own.
    ///
    /// # Errors
    /// The system refused a thread or a descriptor.
    pub fn new(disk: Disk) -> Result<Handle> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let info = Arc::new(Mutex::new(disk.info()));
        let (asks, asked) = channel();
        let (theirs, told) = (wake.clone(), info.clone());
        let thread = std::thread::Builder::new()
            .name("blkfront".into())
            .spawn(move || serve(disk, &asked, &theirs, &told))
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EAGAIN as i32)))?;
        let (asks, thread) = (Mutex::new(Some(asks)), Mutex::new(Some(thread)));
        Ok(Handle { inner: Arc::new(Inner { asks, wake, info, thread }) })
    }

    /// What the disk is now.
    pub fn info(&self) -> Info {
        *lock(&self.inner.info)
    }

    /// As [`Disk::read_at`].
    ///
    /// # Errors
    /// As [`Disk::read_at`].
    pub fn read_at(&self, offset: u64, octets: &mut [u8]) -> Result<()> {
        let read = self.ask(|reply| Ask::Read(offset, octets.len(), reply))?;
        octets.copy_from_slice(&read);
        Ok(())
    }

    /// As [`Disk::write_at`].
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn write_at(&self, offset: u64, octets: &[u8]) -> Result<()> {
        self.ask(|reply| Ask::Write(offset, octets.to_vec(), reply)).map(drop)
    }

    /// As [`Disk::flush`].
    ///
    /// # Errors
    /// As [`Disk::flush`].
    pub fn flush(&self) -> Result<()> {
        self.ask(Ask::Flush).map(drop)
    }

    /// Closes the disk for all who share it.
    ///
    /// # Errors
    /// As [`Disk::close`].
    pub fn close(&self) -> Result<()> {
        self.inner.end()
    }

    fn ask(&self, ask: impl FnOnce(Sender<Result<Vec<u8>>>) -> Ask) -> Result<Vec<u8>> {
        let (reply, answer) = channel();
        let asks = lock(&self.inner.asks).clone().ok_or(Error::Closed)?;
        asks.send(ask(reply)).map_err(|_| Error::Thread)?;
        let _ = self.inner.wake.write(1);
        answer.recv().map_err(|_| Error::Thread)?
    }
}

impl Inner {
    fn end(&self) -> Result<()> {
        drop(lock(&self.asks).take());
        let _ = self.wake.write(1);
        let thread = lock(&self.thread).take();
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or(Err(Error::Thread)))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("closing a disk: {error}");
        }
    }
}

fn serve(mut disk: Disk, asked: &Receiver<Ask>, wake: &EventFd, info: &Mutex<Info>) -> Result<()> {
    loop {
        let _ = wake.read();
        loop {
            match asked.try_recv() {
                Ok(ask) => answer(&mut disk, ask),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return disk.close(),
            }
        }
        *lock(info) = disk.info();
        let mut fds = [wake.as_fd(), disk.fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if let Err(error) = disk.attend() {
            tracing::warn!("{error}");
        }
        *lock(info) = disk.info();
    }
}

fn answer(disk: &mut Disk, ask: Ask) {
    // Whoever asked may have gone.
    let _ = match ask {
        Ask::Read(offset, octets, reply) => {
            let mut read = vec![0; octets];
            let outcome = disk.read_at(offset, &mut read);
            reply.send(outcome.map(|()| read))
        }
        Ask::Write(offset, octets, reply) => reply.send(disk.write_at(offset, &octets).map(|()| octets)),
        Ask::Flush(reply) => reply.send(disk.flush().map(|()| Vec::new())),
    };
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
