//! `xpv disk info`: shows what an image's header says.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use blkback::engine::format::{Backing, Compression, Format};
use serde_json::{Map, Value, json};

use crate::config::size::Bytes;
use crate::error::{Error, Result};
use crate::image::named::{FormatOption, NamedImage};
use crate::image::{Geometry, chain, warn_of_header};
use crate::output;

/// Images of a chain that are shown: more than are served.
const MAX_IMAGES: usize = 64;

/// Show an image's format, sizes and backing file, also while it is in use
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    path: String,

    /// Its format: raw or qcow2
    #[arg(short, long)]
    format: Option<FormatOption>,

    /// Print JSON, with the members of `qemu-img info --output=json`
    #[arg(long)]
    json: bool,

    /// Show its backing files too, and theirs
    #[arg(long)]
    chain: bool,
}

/// What is known of an image.
struct Image {
    path: PathBuf,
    file: Metadata,
    /// As a disk, in bytes.
    bytes: u64,
    /// Of a qcow2 image.
    geometry: Option<Geometry>,
}

/// Shows the image.
///
/// # Errors
/// It, or one of its backing files where these are shown, cannot be read or is none.
pub fn run(args: &Args) -> Result<()> {
    let named = NamedImage::parse("PATH", &args.path, args.format)?;
    let mut images = vec![Image::read(&named)?];
    while let Some(next) = images.last().filter(|_| args.chain).and_then(Image::backing).transpose()? {
        if images.len() >= MAX_IMAGES {
            let expected = format!("expected at most {MAX_IMAGES} files");
            return Err(Error::other(format!(
                "{}: a chain of backing files without end, {expected}",
                args.path
            )));
        }
        images.push(Image::read(&next)?);
    }
    match (args.json, args.chain) {
        (true, true) => output::json(&images.iter().map(Image::members).collect::<Vec<_>>()),
        (true, false) => output::json(&images[0].members()),
        (false, _) => {
            let texts: Vec<String> = images.iter().map(Image::text).collect();
            output::text(&texts.join("\n"))
        }
    }
}

impl Image {
    fn read(named: &NamedImage) -> Result<Image> {
        let path = &named.path;
        let failed = |e| Error::file(path, "reading the image", e);
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !(kind.is_file() || kind.is_block_device()) {
            return Err(Error::other(format!("{}: neither a file nor a block device", path.display())));
        }
        let mut opened = File::open(path).map_err(failed)?;
        let geometry = match named.format() {
            Format::Raw => {
                warn_of_header(named, &opened);
                None
            }
            Format::Qcow2 => Some(Geometry::read(path, &opened)?),
        };
        // A block device's length is its end.
        let length = std::io::Seek::seek(&mut opened, std::io::SeekFrom::End(0)).map_err(failed)?;
        let bytes = geometry.as_ref().map_or(length, |geometry| geometry.size);
        Ok(Image { path: path.clone(), file: opened.metadata().map_err(failed)?, bytes, geometry })
    }

    /// The backing file, as the image names it.
    fn recorded_backing(&self) -> Option<&Backing> {
        self.geometry.as_ref()?.backing.as_ref()
    }

    /// The backing file as this process finds it.
    fn backing(&self) -> Option<Result<NamedImage>> {
        let backing = chain::backing(&self.path, self.geometry.as_ref()?).transpose()?;
        Some(backing.map(|(path, format)| NamedImage { path, said: Some(format) }))
    }

    fn format(&self) -> Format {
        if self.geometry.is_some() { Format::Qcow2 } else { Format::Raw }
    }

    fn actual_bytes(&self) -> u64 {
        self.file.blocks() * 512
    }

    /// The members that QEMU's tool prints.
    fn members(&self) -> Value {
        let file = json!({
            "filename": self.path.display().to_string(),
            "format": "file",
            "virtual-size": if self.file.is_file() { self.file.len() } else { self.bytes },
            "actual-size": self.actual_bytes(),
            "dirty-flag": false,
            "children": [],
            "format-specific": { "type": "file", "data": {} },
        });
        let mut members = Map::new();
        let mut set = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
        set("filename", json!(self.path.display().to_string()));
        set("format", json!(self.format().to_string()));
        set("virtual-size", json!(self.bytes));
        set("actual-size", json!(self.actual_bytes()));
        set("dirty-flag", json!(self.geometry.as_ref().is_some_and(|geometry| geometry.dirty)));
        set("children", json!([{ "name": "file", "info": file }]));
        if let Some(geometry) = &self.geometry {
            set("cluster-size", json!(geometry.cluster_size()));
            set("format-specific", json!({ "type": Format::Qcow2.to_string(), "data": specific(geometry) }));
        }
        if let Some(backing) = self.recorded_backing() {
            set("backing-filename", json!(backing.name));
            set(
                "full-backing-filename",
                json!(chain::resolved(&self.path, &backing.name).display().to_string()),
            );
            if let Some(format) = &backing.format {
                set("backing-filename-format", json!(format));
            }
        }
        Value::Object(members)
    }

    fn text(&self) -> String {
        let Image { path, bytes, .. } = self;
        let mut lines = vec![
            format!("image: {}", path.display()),
            format!("file format: {}", self.format().to_string()),
            format!("virtual size: {} ({bytes} bytes)", Bytes(*bytes)),
            format!("disk size: {}", Bytes(self.actual_bytes())),
        ];
        if let Some(geometry) = &self.geometry {
            lines.push(format!("cluster_size: {}", geometry.cluster_size()));
            lines.extend(self.recorded_backing().map(|backing| format!("backing file: {}", backing.name)));
            let format = self.recorded_backing().and_then(|backing| backing.format.as_ref());
            lines.extend(format.map(|format| format!("backing file format: {format}")));
            lines.push("Format specific information:".to_owned());
            lines.extend(specific(geometry).into_iter().map(|(name, value)| {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                format!("    {}: {value}", name.replace('-', " "))
            }));
        }
        lines.join("\n") + "\n"
    }
}

/// What only a qcow2 image has.
fn specific(geometry: &Geometry) -> Map<String, Value> {
    let mut members = Map::new();
    let mut set = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
    set("compat", json!(if geometry.version >= 3 { "1.1" } else { "0.10" }));
    let compression = match geometry.compression {
        Compression::Deflate => "zlib",
        Compression::Zstd => "zstd",
    };
    set("compression-type", json!(compression));
    set("refcount-bits", json!(1 << geometry.refcount_order));
    if geometry.version >= 3 {
        set("lazy-refcounts", json!(geometry.lazy_refcounts));
        set("corrupt", json!(geometry.corrupt));
        set("extended-l2", json!(false));
    }
    members
}
