//! The peer of rows N4, N7 and N8 carries datagrams both ways between two network namespaces.

use benches::link::{Echo, Link, round_trip_times};
use benches::namespace::{ADDRESSES, Namespace};
use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[test]
fn tapfwd_between_two_namespaces_loses_no_datagram() {
    if let Err(why) = Namespace::new() {
        eprintln!("SKIPPED: tapfwd between two namespaces: {why}: run as root");
        return;
    }
    let link = Link::tapfwd(Path::new(env!("CARGO_BIN_EXE_tapfwd"))).unwrap();
    let echo = link.ends.server.run(|| Echo::bind(ADDRESSES[1])).unwrap();
    let client = link.ends.client.run(|| UdpSocket::bind((ADDRESSES[0], 0))).unwrap();
    client.connect(echo.address()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| echo.run(&stop));
        let times = round_trip_times(&client, |count| count < 100);
        stop.store(true, Relaxed);
        server.join().unwrap().unwrap();
        assert_eq!(times.unwrap().len(), 100);
    });
}
