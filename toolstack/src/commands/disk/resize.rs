//! `xpv disk resize`: gives an image at rest another size.

use blkback::engine::Mode;
use blkback::engine::format::Format;

use crate::error::{Error, Origin, Result};
use crate::image::named::{FormatOption, NamedImage};
use crate::image::size::Size;
use crate::image::{Geometry, chain, resize, warn_of_header};

/// Give an image that nobody uses another size
///
/// What is beyond the old size reads as zeroes. The disk of a running guest is resized by `xpv block-resize`; a block device by the tools that
/// made it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    path: String,

    /// Bytes, such as 20G
    size: Size,

    /// Its format: raw or qcow2
    #[arg(short, long)]
    format: Option<FormatOption>,

    /// Allow a size below the present one: what is beyond it is lost
    #[arg(long)]
    shrink: bool,
}

/// Resizes the image.
///
/// # Errors
/// Somebody uses it; it would become smaller without `--shrink`; it cannot be read or written.
pub fn run(args: &Args) -> Result<()> {
    let named = NamedImage::parse("PATH", &args.path, args.format)?;
    let path = &named.path;
    let Size(bytes) = args.size;
    match named.format() {
        Format::Raw => resize_raw(&named, bytes, args.shrink),
        Format::Qcow2 => {
            let layers = chain::open(path, Format::Qcow2, Mode::Write)?;
            let geometry = Geometry::read(path, layers[0].image.file())?;
            check_size(geometry.size, bytes, args.shrink)?;
            let resized = resize::resize(&layers, geometry.version, bytes);
            resized.map_err(|e| Error::file(path, "resizing the image", e))
        }
    }
}

fn resize_raw(named: &NamedImage, bytes: u64, shrink: bool) -> Result<()> {
    let path = &named.path;
    let image = chain::open_image(path, Mode::Write)?;
    let failed = |e| Error::file(path, "resizing the image", e);
    let meta = image.file().metadata().map_err(failed)?;
    if !meta.is_file() {
        let expected = "an image file: a block device is resized by the tools that made it";
        return Err(Origin::argument("PATH").invalid("image", &path.display().to_string(), expected));
    }
    warn_of_header(named, image.file());
    check_size(meta.len(), bytes, shrink)?;
    image.file().set_len(bytes).and_then(|()| image.file().sync_all()).map_err(failed)
}

/// Refuses a smaller size that was not asked for as such.
fn check_size(old: u64, new: u64, shrink: bool) -> Result<()> {
    if new < old && !shrink {
        let expected = format!("{old} at least, or --shrink, by which what is beyond the new size is lost");
        return Err(Origin::argument("SIZE").invalid("bytes", &new.to_string(), expected));
    }
    Ok(())
}
