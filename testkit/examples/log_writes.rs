//! Power cuts of a disk whose writes Linux's device mapper has logged (`log-writes`), for the scenario `power-cut` of `tests/xen`.
//!
//! ```text
//! log_writes count LOG SECTORS                     prints how many flushes there are
//! log_writes cut LOG SECTORS IMAGE SEED NUMBER     makes the image after cut NUMBER, and prints the last mark before it
//! log_writes check DIRECTORY MARK                  whether the files that the mark names are there: `a12-b9`
//! log_writes file NAME NUMBER                      prints the content of the file NAMENUMBER
//! ```
//!
//! Cuts of even numbers are just after a flush, the others between two, with any part of what was written after the first.

use rand::RngExt;
use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::Path;
use testkit::power_cut::{Choice, LogWrites};
use testkit::random::{bytes, generator};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["count", log, sectors] => println!("{}", read(log, sectors)?.log.flushed().count()),
        ["cut", log, sectors, image, seed, number] => {
            cut(&read(log, sectors)?, image, seed.parse()?, number.parse()?)?;
        }
        ["check", directory, mark] => check(Path::new(directory), mark)?,
        ["file", name, number] => std::io::stdout().write_all(&content(name, number.parse()?))?,
        _ => return Err("expected count, cut, check or file: see the head of log_writes.rs".into()),
    }
    Ok(())
}

fn read(log: &str, sectors: &str) -> Result<LogWrites, Box<dyn Error>> {
    Ok(LogWrites::read(BufReader::with_capacity(1 << 20, File::open(log)?), sectors.parse()?)?)
}

fn cut(log: &LogWrites, image: &str, seed: u64, number: u64) -> Result<(), Box<dyn Error>> {
    let mut random = generator(seed.wrapping_add(number));
    let flushed: Vec<u64> = log.log.flushed().collect();
    // Not before the file system is there.
    let made = log.marks.first().ok_or("no mark in the log")?.0;
    let first = flushed.partition_point(|at| *at < made);
    let chosen = random.random_range(first..flushed.len());
    let start = flushed[chosen] + 1;
    let (at, choice) = if number.is_multiple_of(2) {
        (start, Choice::None)
    } else {
        let end = flushed.get(chosen + 1).map_or(start + 100, |next| *next);
        (random.random_range(start..=end), Choice::EVERY[(number / 2) as usize % Choice::EVERY.len()])
    };
    std::fs::write(image, log.log.image(at, choice, &mut random))?;
    println!("{}", log.mark_before(at).unwrap_or("none"));
    Ok(())
}

fn check(directory: &Path, mark: &str) -> Result<(), Box<dyn Error>> {
    for files in mark.split('-').filter(|files| *files != "none") {
        let no_mark = || format!("mark {mark}: found {files:?}, expected a letter and a number");
        let (name, last) = files.split_at_checked(1).ok_or_else(no_mark)?;
        for number in 1..=last.parse().map_err(|_| no_mark())? {
            let path = directory.join(format!("{name}{number}"));
            let found =
                std::fs::read(&path).map_err(|e| format!("{}: {e}, expected by {mark}", path.display()))?;
            if found != content(name, number) {
                return Err(
                    format!("{}: {} bytes differ, expected by {mark}", path.display(), found.len()).into()
                );
            }
        }
    }
    Ok(())
}

/// What a file holds: 1 to 64 KiB.
fn content(name: &str, number: u64) -> Vec<u8> {
    let seed = number + name.bytes().map(|byte| u64::from(byte) << 32).sum::<u64>();
    bytes(seed, 1024 + (seed % 64) as usize * 1000)
}
