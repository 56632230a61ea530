//! `xpv disk check`: checks the tables of a qcow2 image.

use std::process::ExitCode;

use blkback::engine::Mode;
use blkback::engine::format::Format;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::image::check::{self, Report, Watcher};
use crate::image::named::{FormatOption, NamedImage};
use crate::image::{Geometry, chain, warn_of_header};
use crate::output;

/// Lines about what is wrong that are printed.
const MAX_LINES: u64 = 100;

/// The autoclear feature of bitmaps (QEMU's docs/interop/qcow2.rst).
const BITMAPS: u64 = 1;

/// Check the tables and refcounts of a qcow2 image that nobody uses
///
/// The status is that of `qemu-img check`: 0 nothing is wrong, 1 the image cannot be checked, 2 data may be lost, 3 space is lost, 63 a
/// format without tables. Nothing is repaired.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    path: String,

    /// Its format: raw or qcow2
    #[arg(short, long)]
    format: Option<FormatOption>,

    /// Print JSON, with the members of `qemu-img check --output=json`
    #[arg(long)]
    json: bool,
}

/// Prints what is wrong, and how far the check is.
struct Shown {
    bar: ProgressBar,
    lines: u64,
}

impl Watcher for Shown {
    fn found(&mut self, line: &str) {
        self.lines += 1;
        if self.lines <= MAX_LINES {
            self.bar.suspend(|| output::message(line));
        }
    }

    fn progress(&mut self, done: f64) {
        self.bar.set_position((done * 100.0) as u64);
    }
}

/// An image that is in use changes while it is read: `qemu-img check -U` looks at it all the same.
const IN_USE: &str =
    "(qemu-img check -U looks at an image in use, and may take what is being written for errors)";

/// Checks the image.
///
/// # Errors
/// It cannot be read, or somebody writes to it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let named = NamedImage::parse("PATH", &args.path, args.format)?;
    let path = &named.path;
    let image = chain::open_image(path, named.format(), Mode::Read).map_err(|error| match error {
        Error::Other(what) if what.contains("in use") => Error::Other(format!("{what} {IN_USE}")),
        error => error,
    })?;
    if named.format() == Format::Raw {
        warn_of_header(&named, image.file());
        output::message(format_args!("{}: a raw image has no tables to check", path.display()));
        return Ok(ExitCode::from(63));
    }
    let geometry = Geometry::read(path, image.file())?;
    if geometry.autoclear & BITMAPS != 0 {
        let expected = "none: their clusters are not counted here (qemu-img check does)";
        return Err(Error::other(format!("{}: qcow2: found bitmaps, expected {expected}", path.display())));
    }
    let style = ProgressStyle::with_template("{bar:40} {pos:>3} %  {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let mut shown = Shown { bar: ProgressBar::new(100).with_style(style), lines: 0 };
    let checked = check::check(image.file(), &geometry, &mut shown);
    shown.bar.finish_and_clear();
    let report = checked.map_err(|e| Error::file(path, "checking the image", e))?;
    if shown.lines > MAX_LINES {
        output::message(format_args!("and {} more", shown.lines - MAX_LINES));
    }
    match args.json {
        true => output::json(&members(&report, &args.path))?,
        false => print(&report)?,
    }
    Ok(match report {
        Report { corruptions: 1.., .. } => ExitCode::from(2),
        Report { leaks: 1.., .. } => ExitCode::from(3),
        _ => ExitCode::SUCCESS,
    })
}

fn members(report: &Report, filename: &str) -> Value {
    let mut members = Map::new();
    let mut set = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
    set("filename", json!(filename));
    set("format", json!(Format::Qcow2.to_string()));
    set("check-errors", json!(0));
    set("image-end-offset", json!(report.image_end));
    set("total-clusters", json!(report.total_clusters));
    for (name, count) in [
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("allocated-clusters", report.allocated_clusters),
        ("compressed-clusters", report.compressed_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
    ] {
        if count > 0 {
            set(name, json!(count));
        }
    }
    Value::Object(members)
}

fn print(report: &Report) -> Result<()> {
    match (report.corruptions, report.leaks) {
        (0, 0) => output::line(format_args!("No errors were found on the image."))?,
        (corruptions, leaks) => output::line(format_args!(
            "{corruptions} errors, by which data may be lost, and {leaks} leaked clusters, by which space is lost, were found."
        ))?,
    }
    let part = |count: u64, of: u64| if of == 0 { 0.0 } else { count as f64 * 100.0 / of as f64 };
    output::line(format_args!(
        "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
        report.allocated_clusters,
        report.total_clusters,
        part(report.allocated_clusters, report.total_clusters),
        part(report.fragmented_clusters, report.allocated_clusters),
        part(report.compressed_clusters, report.allocated_clusters),
    ))?;
    output::line(format_args!("Image end offset: {}", report.image_end))
}
