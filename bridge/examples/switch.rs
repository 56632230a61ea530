//! An Ethernet switch: `switch tap:NAME... if:NAME...` joins taps, which it makes, and existing interfaces until the
//! end of its input; then it prints the counters and the forwarding database.

use std::{error::Error, io::Read};

use bridge::{
    Bridge, Config, Port,
    port::{packet::Packet, tap::Tap},
};

fn open(argument: &str) -> Result<Box<dyn Port>, Box<dyn Error>> {
    match argument.split_once(':') {
        Some(("tap", name)) => Ok(Box::new(Tap::open(name)?)),
        Some(("if", name)) => Ok(Box::new(Packet::open(name)?)),
        _ => Err(format!("{argument:?}: expected tap:NAME or if:NAME").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let bridge = Bridge::start(Config::default())?;
    for argument in std::env::args().skip(1) {
        bridge.attach(&argument, open(&argument)?)?;
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for port in bridge.ports()? {
        println!("{}: {:?}", port.name, port.counters);
    }
    for row in bridge.fdb()? {
        println!("{} at {}, {} s ago", row.mac, row.port, row.age_s);
    }
    Ok(())
}
