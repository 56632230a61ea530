//! Images at rest: how commands name them, what their headers say, and whether their tables are right.

pub mod chain;
pub mod check;
pub mod named;
pub mod resize;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blkback::engine::format::{Format, HEADER_READ, Header};

use crate::error::{Error, Result};
use crate::output;
use named::NamedImage;

/// What a file that begins with a qcow2 header begins with.
const MAGIC: [u8; 4] = *b"QFI\xfb";

/// What direct I/O is aligned to, at most.
const DIRECT: usize = 4096;

/// The header of a qcow2 image, and the length of its file.
#[derive(Clone, Debug)]
pub struct Geometry {
    header: Header,
    /// In bytes.
    pub file_bytes: u64,
}

impl Geometry {
    /// Reads the header of the image in a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Other`] if it is none that is served; both name the file.
    pub fn read(path: &Path, file: &File) -> Result<Geometry> {
        let failed = |e| Error::file(path, "reading its header", e);
        let file_bytes = file.metadata().map_err(failed)?.len();
        let start = start_of(file, HEADER_READ).map_err(failed)?;
        let header = Header::parse(&start, file_bytes);
        let header = header.map_err(|e| Error::other(format!("{}: qcow2: {e}", path.display())))?;
        Ok(Geometry { header, file_bytes })
    }

    /// How many clusters the file has; the last one may be a part.
    pub fn clusters(&self) -> u64 {
        self.file_bytes.div_ceil(self.header.cluster_size())
    }
}

impl Deref for Geometry {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

/// The first bytes of a file, which may be open for direct I/O.
fn start_of(file: &File, bytes: usize) -> io::Result<Vec<u8>> {
    let mut memory = vec![0; bytes.next_multiple_of(DIRECT) + DIRECT];
    let from = memory.as_ptr().align_offset(DIRECT).min(DIRECT);
    let end = from + bytes.next_multiple_of(DIRECT);
    let read = loop {
        match file.read_at(&mut memory[from..end], 0) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    memory.drain(..from);
    memory.truncate(read.min(bytes));
    Ok(memory)
}

/// Warns of an image that is taken for a raw one as nothing says another format, and begins as a qcow2 image does.
pub fn warn_of_header(image: &NamedImage, file: &File) {
    let has_header = || start_of(file, MAGIC.len()).is_ok_and(|start| start == MAGIC);
    if image.said.is_none() && image.format() == Format::Raw && has_header() {
        output::message(format_args!(
            "warning: {0}: read as raw, and begins with a qcow2 header: qcow2:{0} says that it is one",
            image.path.display()
        ));
    }
}
