//! The highest rate of datagrams one way of which none is lost.

use super::udp_stream;
use crate::namespace::Ends;
use std::time::Duration;

/// Of the first measurement at full offer, which bounds the search.
const FULL: Duration = Duration::from_millis(200);
/// Of each measurement at a rate.
const STEP: Duration = Duration::from_millis(150);
/// The lowest rate that is tried, a second.
const LOWEST: f64 = 500.0;
/// Halvings of the range between the lowest and the highest rate: eight of a range of 1 to 1,000 leave 3 %.
const HALVINGS: usize = 8;
/// One datagram that is lost for another reason than the rate does not decide.
const ATTEMPTS: usize = 2;

/// Datagrams of `bytes` bytes a second, 0 if even the lowest rate loses some.
///
/// # Errors
/// Of the sockets.
pub(super) fn highest(ends: &Ends, bytes: usize) -> Result<f64, String> {
    let full = udp_stream::run(ends, bytes, None, FULL)?;
    if full.is_lossless() {
        return Ok(full.sent_a_second());
    }
    search(LOWEST, full.sent_a_second(), |rate| {
        for _ in 0..ATTEMPTS {
            let outcome = udp_stream::run(ends, bytes, Some(rate), STEP)?;
            if outcome.is_lossless() {
                return Ok(Some(outcome.sent_a_second()));
            }
        }
        Ok(None)
    })
}

/// The highest rate between two that `lossless` has; it gives the rate that was in fact sent, or `None` if some were lost.
fn search(
    lowest: f64,
    highest: f64,
    mut lossless: impl FnMut(f64) -> Result<Option<f64>, String>,
) -> Result<f64, String> {
    let Some(mut best) = lossless(lowest)? else { return Ok(0.0) };
    let mut low = lowest;
    let mut high = highest;
    for _ in 0..HALVINGS {
        let middle = (low * high).sqrt();
        match lossless(middle)? {
            Some(rate) => {
                best = f64::max(best, rate);
                low = middle;
            }
            None => high = middle,
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_finds_the_limit_within_three_percent() {
        let limit = 47_000.0;
        let found = search(500.0, 500_000.0, |rate| Ok((rate <= limit).then_some(rate))).unwrap();
        assert!(found <= limit && found > limit * 0.97, "{found}");
    }

    #[test]
    fn search_without_a_lossless_rate_is_zero() {
        assert_eq!(search(500.0, 500_000.0, |_| Ok(None)), Ok(0.0));
    }
}
