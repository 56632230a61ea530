// Not a core: does I/O or calls a hypervisor.

//! Opens a qcow2 image and those below it: the first as the guest uses it, the others for reading alone, each with its locks. Nothing is
//! probed: an image's format is given by who names it.

use super::header::{Backing, HEADER_READ, Header};
use super::image_file::ImageFile;
use super::image_format::Format;
use crate::engine::{Access, Mode, OpenError, OpenImage};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images of a chain, at most.
pub const MAX_LAYERS: usize = 16;

/// An open image of a chain.
#[derive(Debug)]
pub struct OpenLayer {
    /// The image.
    pub image: OpenImage,
    /// Its format.
    pub format: Format,
}

impl OpenLayer {
    /// Opens an image of a chain again, for writing or for reading, whose open file has the descriptors `held`, and takes their locks over.
    ///
    /// # Errors
    /// As [`OpenChain::open`]; another one uses the image; another image is at the path. What is held has its locks then.
    pub fn reopen(
        path: &Path,
        format: Format,
        access: Access,
        held: Vec<OwnedFd>,
        may_open: &dyn Fn(&Path, BorrowedFd<'_>) -> Result<(), String>,
    ) -> Result<OpenLayer, OpenError> {
        let image = OpenImage::reopen(path, access, held, may_open)?;
        Ok(OpenLayer { image, format })
    }
}

/// A qcow2 image and those below it, in this order.
#[derive(Debug)]
pub struct OpenChain {
    /// The first is the guest's own.
    pub layers: Vec<OpenLayer>,
}

impl OpenChain {
    /// Opens an image of a format and all below it, of a raw one none. Otherwise as [`OpenChain::open`].
    ///
    /// # Errors
    /// As [`OpenChain::open`].
    pub fn open_as(
        path: &Path,
        format: Format,
        access: Access,
        may_open: &dyn Fn(&Path, BorrowedFd<'_>) -> Result<(), String>,
    ) -> Result<OpenChain, OpenError> {
        match format {
            Format::Qcow2 => OpenChain::open(path, access, may_open),
            Format::Raw => Ok(OpenChain { layers: vec![open_layer(path, format, access, may_open)?] }),
        }
    }

    /// Opens a qcow2 image and all below it. `may_open` is asked about each file once it is open, before anything is read of it.
    ///
    /// # Errors
    /// Every [`OpenError`] but [`OpenError::Ram`]; the chain is too long, or names one image twice.
    pub fn open(
        path: &Path,
        access: Access,
        may_open: &dyn Fn(&Path, BorrowedFd<'_>) -> Result<(), String>,
    ) -> Result<OpenChain, OpenError> {
        if access.mode == Mode::WriteShared {
            let what = "found mode w!, expected w or r: a qcow2 image has one writer".to_owned();
            return Err(OpenError::Format { path: path.into(), what });
        }
        let mut layers: Vec<OpenLayer> = Vec::new();
        let mut seen = Vec::new();
        let mut next = Some((path.to_owned(), Format::Qcow2, access));
        while let Some((path, format, access)) = next.take() {
            let refuse = |what: String| OpenError::Format { path: path.clone(), what };
            if layers.len() == MAX_LAYERS {
                return Err(refuse(format!(
                    "found more images below each other, expected {MAX_LAYERS} at most"
                )));
            }
            // Before it is locked again, by which it would be in use by itself.
            let meta =
                std::fs::metadata(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
            let file = (meta.dev(), meta.ino());
            if seen.contains(&file) {
                return Err(refuse(
                    "found an image that is below itself, expected a chain that ends".to_owned(),
                ));
            }
            seen.push(file);
            let layer = open_layer(&path, format, access, may_open)?;
            if format == Format::Qcow2 {
                let header = read_header(&layer.image)?;
                let below =
                    header.backing.map(|backing| backing.locate(&path)).transpose().map_err(refuse)?;
                let access = Access { mode: Mode::Read, user: None, own_loop: None, ..access };
                next = below.map(|(path, format)| (path, format, access));
            }
            layers.push(layer);
        }
        Ok(OpenChain { layers })
    }

    /// Opens a qcow2 image without those below it, to which others have the descriptors.
    ///
    /// # Errors
    /// As [`OpenChain::open`].
    pub fn open_alone(
        path: &Path,
        access: Access,
        may_open: &dyn Fn(&Path, BorrowedFd<'_>) -> Result<(), String>,
    ) -> Result<OpenChain, OpenError> {
        let layer = open_layer(path, Format::Qcow2, access, may_open)?;
        read_header(&layer.image)?;
        Ok(OpenChain { layers: vec![layer] })
    }

    /// The descriptors of all images, in their order.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.layers.iter().flat_map(|layer| layer.image.descriptors())
    }

    /// Closes the images in this process, and leaves their locks to the process that was sent the descriptors.
    pub fn leave(self) {
        self.layers.into_iter().for_each(|layer| layer.image.leave());
    }
}

fn open_layer(
    path: &Path,
    format: Format,
    access: Access,
    may_open: &dyn Fn(&Path, BorrowedFd<'_>) -> Result<(), String>,
) -> Result<OpenLayer, OpenError> {
    let image = match format {
        Format::Raw => OpenImage::open(path, access)?,
        Format::Qcow2 => OpenImage::open_container(path, access)?,
    };
    for file in image.descriptors() {
        may_open(path, file).map_err(|what| OpenError::Denied { what })?;
    }
    Ok(OpenLayer { image, format })
}

impl Backing {
    /// Where the image is that `path` names as below it, and of which format.
    ///
    /// # Errors
    /// No format is recorded, or one that is not served; or the name is no path.
    pub fn locate(&self, path: &Path) -> Result<(PathBuf, Format), String> {
        let Backing { name, format } = self;
        let Some(recorded) = format else {
            return Err(format!(
                "found the backing file {name:?} without a format, expected one in the header (qemu-img rebase -u -b {name} -F FORMAT records it)"
            ));
        };
        let format = recorded.parse().map_err(|()| {
            format!("found the format {recorded:?} of the backing file {name:?}, expected raw or qcow2")
        })?;
        let name = name.strip_prefix("file:").unwrap_or(name);
        let protocol = name.split_once(':').filter(|(protocol, _)| !protocol.contains('/'));
        if let Some((protocol, _)) = protocol {
            return Err(format!(
                "found the backing file {name:?}, expected a path, not one of the protocol {protocol}"
            ));
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        // Without the dots that a name may begin with.
        Ok((directory.join(name).components().collect(), format))
    }
}

/// Reads the header of an open image.
///
/// # Errors
/// It cannot be read, is no image that is served, or none that may be written if it is open for that.
pub(super) fn read_header(image: &OpenImage) -> Result<Header, OpenError> {
    let path = image.path();
    let read = || {
        let file = Arc::new(ImageFile::new(path, image.file().clone(), 0, image.info().sector_size)?);
        let mut start = vec![0; file.length().min(HEADER_READ as u64) as usize];
        file.read_data(&mut start, 0)?;
        Ok((start, file.length()))
    };
    let (start, bytes) = read().map_err(|source| OpenError::Io { path: path.into(), source })?;
    let parsed = Header::parse(&start, bytes).and_then(|header| {
        if !image.info().read_only {
            header.check_writable()?;
        }
        Ok(header)
    });
    parsed.map_err(|error| OpenError::Format { path: path.into(), what: error.to_string() })
}

impl AsFd for OpenLayer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.image.file().as_fd()
    }
}
