//! What the environment says of a test's length and seed.

use std::str::FromStr;

/// The variable `name` as a number, e.g. `XPV_KILLS` or `XPV_TEST_SEED`; `None` where it is not set.
pub fn number<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}
