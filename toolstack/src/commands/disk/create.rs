//! `xpv disk create`: makes an image.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use blkback::engine::Mode;
use blkback::engine::format::{Format, NewImage};
use nix::errno::Errno;

use crate::config::size::Size;
use crate::error::{Error, Origin, Result};
use crate::image::named::{FormatOption, NamedImage};
use crate::image::{Geometry, chain, warn_of_header};

/// The longest name of a backing file, in bytes (QEMU's docs/interop/qcow2.txt: backing_file_size).
const MAX_NAME: usize = 1023;
/// Clusters of 64 KiB, as QEMU makes them.
pub(super) const CLUSTER_BITS: u32 = 16;

/// Make an image: empty, or an overlay that reads as its backing file until it is written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image to make; what exists there is not replaced
    path: String,

    /// Bytes, such as 20G; by default those of the backing file
    #[arg(short, long, required_unless_present = "backing")]
    size: Option<Size>,

    /// The backing file, relative to the image's directory: its bytes are read where the image has none of its own
    #[arg(short, long, value_name = "BASE")]
    backing: Option<String>,

    /// The backing file's format: raw or qcow2
    #[arg(short = 'F', long, requires = "backing")]
    backing_format: Option<FormatOption>,

    /// The image's format, raw or qcow2; an image with a backing file is qcow2
    #[arg(short, long)]
    format: Option<FormatOption>,
}

/// Makes the image.
///
/// # Errors
/// Something exists at its path; the backing file is none; the image cannot be written. Nothing is left of it then.
pub fn run(args: &Args) -> Result<()> {
    let mut image = NamedImage::parse("PATH", &args.path, args.format)?;
    if args.backing.is_some() && image.said == Some(Format::Raw) {
        let expected = "qcow2: a raw image has no backing file";
        return Err(Origin::argument("PATH").invalid("format", "raw", expected));
    }
    if args.backing.is_some() {
        image.said = Some(Format::Qcow2);
    }
    let backing = args.backing.as_deref().map(|text| Backing::open(args, &image.path, text)).transpose()?;
    let size = args.size.map(|Size(bytes)| bytes).or(backing.as_ref().map(|backing| backing.bytes));
    let size = size.unwrap_or_default();
    match image.format() {
        Format::Raw => make(&image.path, |file| file.set_len(size)),
        Format::Qcow2 => {
            let recorded = backing.map(|backing| (backing.name, backing.format.to_string()));
            let backing = recorded.as_ref().map(|(name, format)| (name.as_str(), format.as_str()));
            let new = NewImage { size, cluster_bits: CLUSTER_BITS, backing }.bytes();
            let bytes = new.map_err(|e| Error::other(format!("{}: qcow2: {e}", image.path.display())))?;
            make(&image.path, |mut file| file.write_all(&bytes))
        }
    }
}

/// A backing file.
struct Backing {
    /// As the image records it.
    name: String,
    format: Format,
    /// Its size as a disk.
    bytes: u64,
}

impl Backing {
    /// Finds a backing file, and checks that it can be one.
    fn open(args: &Args, image: &Path, text: &str) -> Result<Backing> {
        let named = NamedImage::parse("--backing", text, args.backing_format)?;
        let invalid = |found: &str, expected| Origin::argument("--backing").invalid("image", found, expected);
        let name = named.path.to_str().ok_or_else(|| invalid(text, "a path in UTF-8"))?;
        // QEMU takes what is before a colon for a protocol, unless a slash comes first.
        let is_protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
        let name = if is_protocol { format!("./{name}") } else { name.to_owned() };
        if name.len() > MAX_NAME {
            return Err(invalid(&name, "at most 1023 bytes"));
        }
        let path = chain::resolved(image, &name);
        let layers = chain::open(&path, named.format(), Mode::Read);
        let layers = layers.map_err(|e| Error::other(format!("--backing: {e}")))?;
        let image = &layers[0].image;
        warn_of_header(&named, image.file());
        let bytes = match named.format() {
            Format::Raw => image.info().sectors * 512,
            Format::Qcow2 => Geometry::read(&path, image.file())?.size,
        };
        Ok(Backing { name, format: named.format(), bytes })
    }
}

/// Makes a file that is there as a whole or not at all.
fn make(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
    let directory = match path.parent() {
        None => PathBuf::from("."),
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.into(),
    };
    let failed = |e| Error::file(path, "making the image", e);
    if path.symlink_metadata().is_ok() {
        return Err(failed(Errno::EEXIST.into()));
    }
    // The umask leaves of the permissions what the user wants.
    let new = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(&directory);
    let new = new.map_err(failed)?;
    write(new.as_file()).map_err(failed)?;
    new.as_file().sync_all().map_err(failed)?;
    new.persist_noclobber(path).map_err(|e| failed(e.error))?;
    File::open(&directory).and_then(|directory| directory.sync_all()).map_err(failed)
}
