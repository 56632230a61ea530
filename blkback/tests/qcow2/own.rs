//! One of several rings on a disk, beside a model of what its own sectors hold.

use crate::common::{Ring, pattern};
use rand::RngExt;
use rand::rngs::SmallRng;

pub(crate) const RINGS: u64 = 3;
/// Sectors of the disk.
pub(crate) const SECTORS: u64 = 16_384;

/// What one ring knows of the sectors that are its own: those whose number, in parts of 4 KiB, is its number modulo [`RINGS`].
pub(crate) struct Own {
    pub(crate) ring: Ring,
    pub(crate) number: u64,
    /// By part: the seed that was written, 0 for zeroes; `None` where a discard has left it open.
    pub(crate) model: Vec<Option<u64>>,
    pub(crate) random: SmallRng,
}

impl Own {
    pub(crate) fn expected(&self, part: u64, base: &[u8]) -> Option<Vec<u8>> {
        let sectors = part * 8..part * 8 + 8;
        match self.model[part as usize]? {
            u64::MAX => Some(base[part as usize * 4096..][..4096].to_vec()),
            0 => Some(vec![0; 4096]),
            seed => Some(pattern(sectors, seed)),
        }
    }

    pub(crate) fn check(&mut self, part: u64, base: &[u8]) {
        let read = self.ring.read(part * 8, 4096).unwrap();
        match self.expected(part, base) {
            Some(expected) => assert!(read == expected, "ring {}, part {part}", self.number),
            None => assert!(read.len() == 4096),
        }
    }

    pub(crate) fn step(&mut self, base: &[u8], may_discard: bool) {
        // Parts that are next to each other in few clusters, so that rings meet.
        let parts = SECTORS / 8;
        let near = self.random.random_range(0..4) > 0;
        let at = self.random.random_range(0..if near { parts / 8 } else { parts });
        let part = (at / RINGS * RINGS + self.number).min(parts - 1);
        if part % RINGS != self.number {
            return;
        }
        match self.random.random_range(0..10) {
            0..5 => {
                let seed = self.random.random_range(1..1 << 19);
                self.ring.write(part * 8, &pattern(part * 8..part * 8 + 8, seed)).unwrap();
                self.model[part as usize] = Some(seed);
            }
            5 => {
                self.ring.write(part * 8, &[0; 4096]).unwrap();
                self.model[part as usize] = Some(0);
            }
            6 if may_discard => {
                // Less than a cluster: it stays, or reads as zeroes where a cluster is as small.
                self.ring.discard(part * 8, 4096).unwrap();
                self.model[part as usize] = None;
            }
            7 => self.ring.flush().unwrap(),
            _ => self.check(part, base),
        }
    }
}
