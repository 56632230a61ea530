//! `xpv disk resize`: gives an image at rest another size.

use std::fs::{File, Metadata};
use std::path::Path;
use std::time::{Duration, Instant};

use blkback::engine::Mode;
use blkback::engine::format::Format;
use ring_abi::blkif::key::{PARAMS, SECTORS};
use xenstore::Nodes;

use super::live::{LiveDisk, Outcome};
use crate::config::size::Size;
use crate::config::target::path_of;
use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::image::named::{FormatOption, NamedImage};
use crate::image::{Geometry, chain, resize, warn_of_header};

/// Give an image that nobody uses, or a running guest's disk, another size
///
/// What is beyond the old size reads as zeroes. The disk of a running guest can only grow. A block device is resized by the tools that made it.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "xpv disk resize [OPTIONS] <PATH> <SIZE>\n       xpv disk resize [OPTIONS] <DOMAIN> <DEV> <SIZE>"
)]
pub struct Args {
    /// The image, or the guest's name or domain ID and the disk; and bytes, such as 20G
    #[arg(required = true, num_args = 2..=3, value_names = ["PATH", "SIZE"])]
    words: Vec<String>,

    /// The image's format: raw or qcow2
    #[arg(short, long)]
    format: Option<FormatOption>,

    /// Allow a size below the present one: what is beyond it is lost
    #[arg(long)]
    shrink: bool,

    /// The guest is a domain of the Xen host that this program runs on
    #[arg(long)]
    xen: bool,
}

/// How long a served disk may take to have its new size.
const PATIENCE: Duration = Duration::from_secs(20);

/// Resizes the image or disk.
///
/// # Errors
/// Somebody uses the image; it would become smaller without `--shrink`; it cannot be read or written.
pub fn run(args: &Args, dir: impl Fn() -> Result<Dir>) -> Result<()> {
    let size = |text: &str| -> Result<u64> {
        let parsed = text.parse::<Size>();
        parsed
            .map(|Size(bytes)| bytes)
            .map_err(|expected| Error::other(format!("SIZE: found {text:?}, {expected}")))
    };
    match args.words.as_slice() {
        [path, bytes] => at_rest(args, &NamedImage::parse("PATH", path, args.format)?, size(bytes)?),
        [domain, dev, bytes] => served(&mut LiveDisk::find(&dir()?, args.xen, domain, dev)?, size(bytes)?),
        _ => Err(Error::other("expected PATH SIZE, or DOMAIN DEV SIZE")),
    }
}

fn at_rest(args: &Args, named: &NamedImage, bytes: u64) -> Result<()> {
    let path = &named.path;
    match named.format() {
        Format::Raw => resize_raw(named, bytes, args.shrink),
        Format::Qcow2 => {
            let layers = chain::open(path, Format::Qcow2, Mode::Write)?;
            let geometry = Geometry::read(path, layers[0].image.file())?;
            check_size(geometry.size, bytes, args.shrink)?;
            let resized = resize::resize(&layers, geometry.version, bytes);
            resized.map_err(|e| Error::file(path, "resizing the image", e))
        }
    }
}

/// Makes a served disk longer: a qcow2 image by dom0, a raw one here. The frontend is told.
fn served(disk: &mut LiveDisk<'_>, bytes: u64) -> Result<()> {
    match disk.image()? {
        Some(image) => {
            check_growth(image.bytes, bytes)?;
            match disk.change("resize", Some(bytes))? {
                Outcome::Failed(why) => return Err(Error::other(why)),
                Outcome::Replaced(now) if now.bytes < bytes => {
                    return Err(Error::other("dom0 was replaced before it had resized the disk"));
                }
                Outcome::Made | Outcome::Replaced(_) => {}
            }
        }
        None => {
            let store = disk.listing.store();
            let params = disk.device.key(store, PARAMS)?.unwrap_or_default();
            let path = Path::new(path_of(&params));
            let failed = |e| Error::file(path, "resizing the image", e);
            let file = File::options().write(true).open(path).map_err(failed)?;
            let meta = file.metadata().map_err(failed)?;
            check_file(path, &meta)?;
            check_growth(meta.len(), bytes)?;
            file.set_len(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        }
    }
    let back = disk.device.backend_path.clone();
    let store = disk.listing.store();
    // Any change of the backend's keys has it look at once.
    store.write(&format!("{back}/resize"), b"1")?;
    let deadline = Instant::now() + PATIENCE;
    while store.read_opt_as::<u64>(&format!("{back}/{SECTORS}"))?.is_none_or(|sectors| sectors < bytes / 512)
    {
        if Instant::now() >= deadline {
            return Err(Error::other("the image has its new size, and the guest is not told of it yet"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn check_growth(old: u64, new: u64) -> Result<()> {
    match new >= old {
        true => Ok(()),
        false => Err(Origin::argument("SIZE").invalid(
            "bytes",
            &new.to_string(),
            format!("{old} at least: a disk that is used only grows"),
        )),
    }
}

fn check_file(path: &Path, meta: &Metadata) -> Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    let expected = "an image file: a block device is resized by the tools that made it";
    Err(Origin::argument("PATH").invalid("image", &path.display().to_string(), expected))
}

fn resize_raw(named: &NamedImage, bytes: u64, shrink: bool) -> Result<()> {
    let path = &named.path;
    let image = chain::open_image(path, Format::Raw, Mode::Write)?;
    let failed = |e| Error::file(path, "resizing the image", e);
    let meta = image.file().metadata().map_err(failed)?;
    check_file(path, &meta)?;
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
