//! How a guest's interfaces receive: `--rx` of commands, and the key `rx` of a host's guests.

use netfront::handshake::RxChoice;
use serde::Deserialize;

/// How interfaces receive. Pages are flipped on the local hypervisor only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RxMethod {
    /// Dom0 copies frames into the guest's pages
    #[default]
    Copy,
    /// Pages with frames change their owner
    Flip,
    /// Flip where that is possible and frames may have a full page, or copy
    Auto,
}

impl RxMethod {
    /// The method's name, as options and files have it.
    pub fn name(self) -> &'static str {
        match self {
            RxMethod::Copy => "copy",
            RxMethod::Flip => "flip",
            RxMethod::Auto => "auto",
        }
    }
}

impl From<RxMethod> for RxChoice {
    fn from(method: RxMethod) -> RxChoice {
        match method {
            RxMethod::Copy => RxChoice::Copy,
            RxMethod::Flip => RxChoice::Flip,
            RxMethod::Auto => RxChoice::Auto,
        }
    }
}
