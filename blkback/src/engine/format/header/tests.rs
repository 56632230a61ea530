//! Headers as facts of `docs/interop/qcow2.rst`, and what of them is refused by which name.

use super::super::create::NewImage;
use super::*;
use proptest::prelude::*;

fn file() -> Vec<u8> {
    let backing = Some(("../base.img", "raw"));
    NewImage { size: 1 << 30, cluster_bits: 16, backing }.bytes().unwrap()
}

fn parse(file: &[u8]) -> Result<Header, String> {
    Header::parse(&file[..file.len().min(HEADER_READ)], file.len() as u64).map_err(|error| error.to_string())
}

#[test]
fn header_that_cannot_be_served_is_refused_by_what_it_has() {
    // A field, its new bytes, and what the refusal says.
    let cases: &[(usize, &[u8], &str)] = &[
        (0, b"QFI\xfa", "found 0x514649fa, expected a qcow2 image"),
        (4, &[0, 0, 0, 1], "found version 1, expected version 2 or 3"),
        (4, &[0, 0, 0, 4], "found version 4"),
        (8, &[0, 0, 0, 0, 0, 1, 0, 0], "found a backing file's name at 65536"),
        (8, &[255; 8], "found a backing file's name at"),
        (16, &[0, 0, 4, 0], "found a backing file's name of 1024 bytes, expected 1 to 1023"),
        (20, &[0, 0, 0, 8], "found cluster_bits 8, expected 9 to 21"),
        (20, &[0, 0, 0, 22], "found cluster_bits 22"),
        (20, &[255; 4], "found cluster_bits 4294967295"),
        (24, &[255; 8], "found a disk of 18446744073709551615 bytes"),
        (32, &[0, 0, 0, 1], "found encryption (crypt_method 1)"),
        (36, &[0, 0, 0, 0], "found an L1 table of 0 entries, expected 2 at least"),
        (36, &[255; 4], "found an L1 table of 4294967295 entries"),
        (40, &[0; 8], "found the L1 table at 0, expected a multiple of 65536"),
        (40, &[0, 0, 0, 0, 0, 3, 0, 1], "found the L1 table at 196609"),
        (40, &[255, 255, 255, 255, 255, 255, 0, 0], "found the L1 table at"),
        (40, &[0, 0, 0, 0, 0, 1, 0, 0], "found the L1 table at 65536 in the refcount table"),
        (48, &[0, 0, 0, 0, 0, 64, 0, 0], "found the refcount table at 4194304"),
        (56, &[0; 4], "found a refcount table of 0 clusters"),
        (56, &[255; 4], "found a refcount table of 4294967295 clusters"),
        (60, &[0, 0, 0, 1], "found 1 internal snapshots"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 4], "found an external data file"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 16], "found extended L2 entries"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 32], "found the unknown incompatible feature bit 5"),
        (72, &[128, 0, 0, 0, 0, 0, 0, 0], "found the unknown incompatible feature bit 63"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 8], "found compression_type 0"),
        (96, &[0, 0, 0, 7], "found refcount_order 7"),
        (100, &[0, 0, 0, 96], "found header_length 96"),
        (100, &[0, 0, 0, 105], "found header_length 105"),
        (100, &[255, 255, 255, 248], "found header_length"),
        (108, &[0, 1, 0, 0], "found the header extension 0xe2792aca of 65536 bytes"),
        (104, &[0x68, 0x03, 0xf8, 0x57], "found a feature name table of 3 bytes"),
        (112, &[255], "found a backing format that is no text"),
        (128, &[0], "found a backing file's name that is no text"),
    ];
    for (at, bytes, expected) in cases {
        let mut file = file();
        file[*at..at + bytes.len()].copy_from_slice(bytes);
        let error = parse(&file).expect_err(expected);
        assert!(error.starts_with(expected), "{error}, not {expected}");
    }
}

#[test]
fn image_that_is_not_consistent_is_read_and_not_written() {
    for (bit, name) in [(1, "dirty"), (2, "corrupt")] {
        let mut file = file();
        file[79] = bit;
        let header = parse(&file).unwrap();
        assert_eq!((header.dirty, header.corrupt), (bit == 1, bit == 2));
        let error = header.check_writable().unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("mode r"), "{error}");
    }
    assert!(parse(&file()).unwrap().check_writable().is_ok());
}

#[test]
fn every_header_that_is_cut_off_is_refused() {
    let file = file();
    for length in 0..139 {
        assert!(Header::parse(&file[..length], file.len() as u64).is_err(), "{length}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0..160usize, file_bytes: u64) {
        let _ = Header::parse(&bytes, file_bytes);
        let mut file = file();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        let _ = parse(&file);
    }
}
