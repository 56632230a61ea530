// Not a core: does I/O or calls a hypervisor.

//! Threads without which a process is of no use.

/// Held by a thread without which its process would be half dead: the process aborts if the thread panics, so that whoever has
/// started it can start it again.
///
/// ```
/// use event_loop::Essential;
///
/// let thread = std::thread::spawn(|| {
///     let _essential = Essential;
///     6 * 7
/// });
/// assert_eq!(thread.join().unwrap(), 42);
/// ```
#[derive(Debug)]
pub struct Essential;

impl Drop for Essential {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The panic's own message has been printed.
            std::process::abort();
        }
    }
}
