//! Memory is bounded, and an image of which only a part is counted at a time has the same report.

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder};

use super::*;

/// Keeps what is found.
#[derive(Default)]
struct Found {
    lines: Vec<String>,
    progress: f64,
}

impl Watcher for Found {
    fn found(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }

    fn progress(&mut self, done: f64) {
        assert!((self.progress..=1.0).contains(&done), "{done} after {}", self.progress);
        self.progress = done;
    }
}

/// An image of 64 MiB in clusters of 4 KiB, of which every eighth has data.
fn image() -> File {
    let file = tempfile::tempfile().unwrap();
    let storage = ImageFile::try_from(file.try_clone().unwrap()).unwrap();
    let new = Qcow2::<ImageFile>::create_builder(storage).size(64 << 20).cluster_size(4096);
    let open = |storage| Ok(Qcow2::<ImageFile>::builder(storage).backing(None));
    let image = FormatAccess::new(new.create_open(DenyImplicitOpenGate::default(), open).unwrap());
    for cluster in (0..16384).step_by(8) {
        image.write(&[7; 4096][..], cluster * 4096).unwrap();
    }
    image.flush().unwrap();
    file
}

fn checked(file: &File, window: u64) -> (Report, Vec<String>) {
    let geometry = Geometry::read("image".as_ref(), file).unwrap();
    let mut found = Found::default();
    let report = check_by(file, &geometry, &mut found, window).unwrap();
    assert_eq!(found.progress, 1.0);
    found.lines.sort();
    (report, found.lines)
}

#[test]
fn image_that_is_counted_in_parts_has_the_same_report() {
    let file = image();
    let (clean, lines) = checked(&file, WINDOW);
    assert_eq!((clean.leaks, clean.corruptions, clean.allocated_clusters), (0, 0, 2048), "{lines:?}");
    // One refcount is gone, one is too high, and an entry names another's cluster.
    let geometry = Geometry::read("image".as_ref(), &file).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let block = number(geometry.refcount_table_offset);
    file.write_all_at(&[0, 0, 0, 9], block + 1000 * 2).unwrap();
    let l2 = number(geometry.l1_offset) & 0x00ff_ffff_ffff_fe00;
    file.write_all_at(&number(l2).to_be_bytes(), l2 + 8 * 8).unwrap();
    let expected = checked(&file, WINDOW);
    assert_eq!((expected.0.leaks, expected.1.is_empty()), (2, false));
    assert!(expected.0.corruptions >= 3, "{expected:?}");
    for window in [1000, 64, 2500] {
        assert_eq!(checked(&file, window), expected, "{window}");
    }
}

#[test]
fn file_that_is_long_and_empty_takes_one_walk() {
    let file = image();
    let geometry = Geometry::read("image".as_ref(), &file).unwrap();
    file.set_len(1 << 42).unwrap();
    let long = Geometry::read("image".as_ref(), &file).unwrap();
    assert!(long.clusters() > 200 * WINDOW);
    let mut found = Found::default();
    let report = check(&file, &long, &mut found).unwrap();
    assert_eq!((report.leaks, report.corruptions), (0, 0), "{:?}", found.lines);
    assert!(report.image_end <= geometry.file_bytes.next_multiple_of(4096));
}
