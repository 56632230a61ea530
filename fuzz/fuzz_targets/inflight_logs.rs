//! Logs of an earlier process with any bytes in them: refused, or as many requests as the ring can have, each once.
#![no_main]

use inflight::{InflightLog, ResponseLog};
use ring_abi::blkif::X86_64;
use ring_abi::netif;
use ring_abi::ring::Back;
use ring_abi::testing::Pages;

libfuzzer_sys::fuzz_target!(|input: (bool, u32, &[u8])| {
    let (start_well, published, bytes) = input;
    let log = Pages::for_bytes(InflightLog::<X86_64, Pages>::bytes(32));
    if start_well {
        // With a head that is right, more of the rest is looked at.
        InflightLog::<X86_64, Pages>::start(log.clone(), 32, published).unwrap();
    }
    let offset = if start_well { 64 } else { 0 };
    let len = bytes.len().min(4096 - offset);
    for (at, word) in bytes[..len].chunks_exact(4).enumerate() {
        log.words().store32(offset + at * 4, u32::from_ne_bytes(word.try_into().unwrap()));
    }
    if let Ok(mut log) = InflightLog::<X86_64, Pages>::open(log, 32)
        && let Ok(unanswered) = log.unanswered(published)
    {
        assert!(unanswered.len() <= 32);
        let mut indexes: Vec<u32> = unanswered.iter().map(|(_, index, _)| *index).collect();
        indexes.sort_unstable();
        assert!(indexes.windows(2).all(|pair| pair[0] != pair[1]), "{indexes:?}");
    }
    let ring = Pages::new(1);
    let mut back = Back::<netif::Rx, Pages>::attach(ring).unwrap();
    let responses = Pages::for_bytes(ResponseLog::<netif::Rx, Pages>::bytes(back.size()));
    for (at, word) in bytes[..bytes.len().min(2048)].chunks_exact(4).enumerate() {
        responses.words().store32(at * 4, u32::from_ne_bytes(word.try_into().unwrap()));
    }
    let _ = ResponseLog::resume(responses, &mut back);
});
