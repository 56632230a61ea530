// Not a core: does I/O or calls a hypervisor.

//! The errno of a failed system call, as toolstacks read it.

use std::io;

use ring_abi::xs_wire::XsError;

/// The errno of an error, or of the error that it wraps; EIO if there is none.
pub fn errno(error: &io::Error) -> i32 {
    let wrapped = || error.get_ref()?.source()?.downcast_ref::<io::Error>()?.raw_os_error();
    error.raw_os_error().or_else(wrapped).unwrap_or(XsError::EIO.errno())
}
