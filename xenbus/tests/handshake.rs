//! Both handshakes against each other and against models of stock ends, as values, under every interleaving: which end runs
//! when, what it has read before the other wrote, watches that merge, ends that restart or fail, and a toolstack that detaches
//! the device. Whatever happens, both ends are connected in the end, or closed where they are to be; and no two ends write
//! states for ever.

#[path = "handshake/explore.rs"]
mod explore;
#[path = "handshake/ours.rs"]
mod ours;
#[path = "handshake/stock.rs"]
mod stock;

use explore::{Disturbances, explore};
use ours::{Back, Front, Kind};
use stock::{Driver, Server};
use xenbus::XenbusState::{Connected, Initialised, Initialising};
use xenbus::handshake::back::Reconnect;
use xenbus::handshake::front::Manner;

const VBD_BACK: Kind =
    Kind { reconnect: Reconnect::InitWait, resumes: false, stops_slowly: true, reuses_keys: false };
const VIF_BACK: Kind =
    Kind { reconnect: Reconnect::Closing, resumes: false, stops_slowly: false, reuses_keys: true };
const VBD_FRONT: Manner = Manner { offers_with: Initialised, reopens: false };
const VIF_FRONT: Manner = Manner { offers_with: Connected, reopens: true };

/// What may happen to our ends, and how often, in one exploration.
const ALL: [Disturbances; 4] = [
    Disturbances { back_restarts: 0, front_restarts: 0, front_closes: 0, detaches: 0, failures: 0 },
    Disturbances { back_restarts: 2, front_restarts: 1, front_closes: 0, detaches: 0, failures: 0 },
    Disturbances { back_restarts: 1, front_restarts: 0, front_closes: 1, detaches: 1, failures: 0 },
    Disturbances { back_restarts: 0, front_restarts: 1, front_closes: 0, detaches: 1, failures: 1 },
];

fn explore_ours(manner: Manner, kind: Kind) {
    for left in ALL {
        for resumes in [false, true] {
            let states = explore(Front::new(manner, Initialising), Back::new(Kind { resumes, ..kind }), left);
            println!("{states} states: {left:?}");
        }
    }
}

#[test]
fn our_ends_of_a_vbd_connect_or_close_whatever_happens() {
    explore_ours(VBD_FRONT, VBD_BACK);
}

#[test]
fn our_ends_of_a_vif_connect_or_close_whatever_happens() {
    explore_ours(VIF_FRONT, VIF_BACK);
}

/// A stock frontend keeps its rings when its backend is killed: the successor resumes them. A kernel does not start again
/// within one access to the store, so that its rings have other keys for whoever has read the old ones.
fn against_our_backend(driver: Driver, kind: Kind) {
    let back_restarts = u8::from(driver != stock::SKIPPING);
    for left in [
        Disturbances::default(),
        Disturbances { back_restarts, front_closes: 1, detaches: 1, ..Disturbances::default() },
        Disturbances { back_restarts, front_restarts: 1, failures: 1, ..Disturbances::default() },
    ] {
        let states = explore(
            stock::Front::new(driver),
            Back::new(Kind { resumes: true, reuses_keys: false, ..kind }),
            left,
        );
        println!("{states} states: {driver:?} {left:?}");
    }
}

#[test]
fn stock_frontends_connect_to_our_backends_or_close_whatever_happens() {
    against_our_backend(stock::BLKFRONT, VBD_BACK);
    against_our_backend(stock::SKIPPING, VBD_BACK);
    against_our_backend(stock::NETFRONT, VIF_BACK);
}

fn against_our_frontend(server: Server, manner: Manner) {
    for left in [
        Disturbances::default(),
        Disturbances { back_restarts: 1, front_restarts: 1, ..Disturbances::default() },
        Disturbances { front_restarts: 1, front_closes: 1, detaches: 1, ..Disturbances::default() },
    ] {
        let states = explore(Front::new(manner, Initialising), stock::Back::new(server), left);
        println!("{states} states: {server:?} {left:?}");
    }
}

#[test]
fn our_frontends_connect_to_stock_backends_or_close_whatever_happens() {
    against_our_frontend(Server::Blkback, VBD_FRONT);
    against_our_frontend(Server::Qemu, VBD_FRONT);
    against_our_frontend(Server::Netback, VIF_FRONT);
}
