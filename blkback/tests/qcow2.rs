//! qcow2 images beside QEMU's tools: theirs read by us, and ours by them.

#[path = "qcow2/common.rs"]
mod common;

use common::{Dir, Ring, check, content, create, open, open_as, open_once_closed, pattern, qemu};

/// Sectors of 8 MiB.
const SECTORS: u64 = 16_384;

#[test]
fn image_of_every_cluster_size_and_version_is_written_and_read_by_both() {
    for (name, options) in [
        ("512", "cluster_size=512"),
        ("4k", "cluster_size=4096,refcount_bits=1"),
        ("64k", "cluster_size=65536"),
        ("64", "cluster_size=65536,refcount_bits=64"),
        ("2m", "cluster_size=2097152"),
        ("v2", "compat=0.10"),
        ("lazy", "lazy_refcounts=on"),
        ("metadata", "preallocation=metadata"),
    ] {
        // On a disk, of which the page cache is bypassed, and in memory.
        let dir = if ["4k", "64k", "v2"].contains(&name) { Dir::new() } else { Dir::in_memory() };
        let image = dir.path(name);
        create(&image, "8M", &["-o", options]);
        let disk = open(&image);
        assert_eq!(disk.info().unwrap().sectors, SECTORS, "{name}");
        let mut ring = Ring::new(&*disk);
        let mut model = vec![0; SECTORS as usize * 512];
        for (at, sectors, seed) in
            [(0, 1, 1), (100, 64, 2), (129, 2, 3), (4000, 2048, 4), (SECTORS - 3, 3, 5), (4097, 1, 6)]
        {
            let data = pattern(at..at + sectors, seed);
            ring.write(at, &data).unwrap();
            assert_eq!(ring.read(at, data.len()).unwrap(), data, "{name}");
            model[at as usize * 512..][..data.len()].copy_from_slice(&data);
        }
        ring.flush().unwrap();
        assert!(ring.read_all(&*disk) == model, "{name}: read by us");
        drop((ring, disk));
        check(&image);
        assert!(content(&image) == model, "{name}: read by QEMU");
        let disk = open(&image);
        assert!(Ring::new(&*disk).read_all(&*disk) == model, "{name}: read again");
    }
}

#[test]
fn compressed_clusters_are_read_and_a_write_makes_them_ordinary() {
    let dir = Dir::new();
    let raw = dir.path("raw");
    let mut model = pattern(0..SECTORS, 7);
    model[100_000..300_000].fill(0);
    std::fs::write(&raw, &model).unwrap();
    for (name, options) in
        [("zlib", "compression_type=zlib"), ("zstd", "compression_type=zstd"), ("small", "cluster_size=4096")]
    {
        let image = dir.path(name);
        let (from, to) = (raw.to_str().unwrap(), image.to_str().unwrap());
        qemu(&["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, from, to]);
        let mut model = model.clone();
        let disk = open(&image);
        let mut ring = Ring::new(&*disk);
        assert!(ring.read_all(&*disk) == model, "{name}");
        for at in [1, 5000, 5001, SECTORS - 1] {
            let data = pattern(at..at + 1, 8);
            ring.write(at, &data).unwrap();
            model[at as usize * 512..][..512].copy_from_slice(&data);
        }
        assert!(ring.read_all(&*disk) == model, "{name}: written");
        drop((ring, disk));
        check(&image);
        assert!(content(&image) == model, "{name}: read by QEMU");
        let info = qemu(&["qemu-img", "info", to]);
        assert!(name == "small" || info.contains(&format!("compression type: {name}")), "{info}");
    }
}

#[test]
fn image_over_others_reads_what_it_has_not_from_them() {
    let dir = Dir::new();
    std::fs::create_dir(dir.path("below")).unwrap();
    let raw = dir.path("below/raw");
    // Shorter than those above, and not of whole clusters.
    std::fs::write(&raw, pattern(0..8191, 1)).unwrap();
    let mut model = pattern(0..8191, 1);
    model.resize(SECTORS as usize * 512, 0);
    let mut below = ("raw".to_owned(), "raw");
    for depth in 1..10u64 {
        let name = format!("{depth}");
        // A name is relative to the image that has it.
        let image = dir.path(&format!("below/{name}"));
        let cluster = ["cluster_size=65536", "cluster_size=4096", "cluster_size=131072"][depth as usize % 3];
        create(&image, "8M", &["-o", cluster, "-b", &below.0, "-F", below.1]);
        let disk = open(&image);
        let mut ring = Ring::new(&*disk);
        for at in [depth * 100, depth * 1000, 8180 + depth] {
            let data = pattern(at..at + 9, depth);
            ring.write(at, &data).unwrap();
            model[at as usize * 512..][..data.len()].copy_from_slice(&data);
        }
        assert!(ring.read_all(&*disk) == model, "depth {depth}");
        drop((ring, disk));
        check(&image);
        assert!(content(&image) == model, "depth {depth}, read by QEMU");
        below = (name, "qcow2");
    }
    assert_eq!(std::fs::read(&raw).unwrap(), pattern(0..8191, 1));
}

#[test]
fn discarded_clusters_are_holes_and_read_as_zeroes() {
    let dir = Dir::new();
    std::fs::write(dir.path("base"), pattern(0..SECTORS, 1)).unwrap();
    for (name, options) in [("alone", &[][..]), ("over", &["-b", "base", "-F", "raw"][..])] {
        let image = dir.path(name);
        create(&image, "8M", options);
        let disk = open(&image);
        let limits = disk.info().unwrap().discard.unwrap();
        assert_eq!((limits.granularity, limits.alignment), (65_536, 0));
        let mut ring = Ring::new(&*disk);
        ring.write(0, &pattern(0..2048, 2)).unwrap();
        let blocks =
            |image: &std::path::Path| std::os::unix::fs::MetadataExt::blocks(&image.metadata().unwrap());
        let before = blocks(&image);
        // From the midst of one cluster to that of another: 14 whole ones.
        ring.discard(130, 15 << 16).unwrap();
        assert!(blocks(&image) + 14 * 128 <= before, "{name}: {} and then {} blocks", before, blocks(&image));
        let mut model = pattern(0..2048, 2);
        model[256 * 512..256 * 512 + (14 << 16)].fill(0);
        assert!(ring.read(0, 1 << 20).unwrap() == model, "{name}");
        // What was freed is used again.
        ring.write(300, &pattern(300..310, 3)).unwrap();
        model[300 * 512..310 * 512].copy_from_slice(&pattern(300..310, 3));
        drop((ring, disk));
        check(&image);
        assert!(content(&image)[..1 << 20] == model, "{name}: read by QEMU");
    }
}

#[test]
fn writes_of_zeroes_become_holes_where_that_is_wanted() {
    let dir = Dir::new();
    std::fs::write(dir.path("base"), pattern(0..SECTORS, 1)).unwrap();
    for (name, options) in [("v3", "compat=1.1"), ("v2", "compat=0.10")] {
        let image = dir.path(name);
        create(&image, "8M", &["-o", options, "-b", "base", "-F", "raw"]);
        let disk = open(&image);
        disk.set_detect_zeroes(true);
        let mut ring = Ring::new(&*disk);
        ring.write(0, &pattern(0..512, 2)).unwrap();
        ring.write(100, &vec![0; 1 << 18]).unwrap();
        let mut model = pattern(0..SECTORS, 1);
        model[..512 * 512].copy_from_slice(&pattern(0..512, 2));
        model[100 * 512..100 * 512 + (1 << 18)].fill(0);
        assert!(ring.read_all(&*disk) == model, "{name}");
        drop((ring, disk));
        check(&image);
        assert!(content(&image) == model, "{name}: read by QEMU");
    }
}

#[test]
fn image_is_read_where_it_may_not_be_written() {
    let dir = Dir::new();
    let image = dir.path("a");
    create(&image, "8M", &[]);
    let disk = open(&image);
    Ring::new(&*disk).write(5, &pattern(5..6, 1)).unwrap();
    drop(disk);
    let params = format!("qcow2:{}", image.display());
    let (one, other) = (open_once_closed(&image, "r").unwrap(), open_once_closed(&image, "r").unwrap());
    assert!(one.info().unwrap().read_only && one.info().unwrap().discard.is_none());
    assert_eq!(Ring::new(&*one).read(5, 512).unwrap(), pattern(5..6, 1));
    assert_eq!(Ring::new(&*other).read(5, 512).unwrap(), pattern(5..6, 1));
    assert!(open_as(&params, "w").err().unwrap().contains("in use"));
    assert!(open_as(&params, "w!").err().unwrap().contains("expected w or r"));
}

#[test]
fn header_in_a_raw_image_is_data() {
    let dir = Dir::new();
    let image = dir.path("a");
    create(&image, "8M", &[]);
    let bytes = std::fs::read(&image).unwrap();
    let disk = open_as(image.to_str().unwrap(), "w").unwrap();
    assert_eq!(disk.info().unwrap().sectors, bytes.len() as u64 / 512);
    assert_eq!(Ring::new(&*disk).read(0, 512).unwrap(), bytes[..512]);
}
