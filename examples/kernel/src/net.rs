//! An interface: the frontend is what a kernel writes over `netfront`'s cores; the backend sends every frame back.

use crate::{Domain, Error};
use alloc::format;
use event_channel::{Channel, EventChannels};
use grant_table::{Access, Contiguous, CopyOp, CopyPtr, GrantTable, Shared};
use netfront::handshake::{Identity, MANNER, Negotiated, QueueInfo, Requested, RxChoice, frontend_keys};
use netfront::rx::{Packet, Rx};
use netfront::tx::{Fragment, Tx};
use ring_abi::netif::{self, RxFlags, RxResponse, Status, TxFlags, TxResponse, key};
use ring_abi::ring::Back;
use ring_abi::{DomId, EventPort, GrantRef, PAGE_SIZE};
use xenbus::handshake::front::{Action, Handshake};
use xenbus::{Keys, XenbusState};

const FRAMES: usize = 300;
const FRAME: usize = 60;

/// Sends frames and receives them again; returns how many.
pub(crate) fn run(guest: &Domain, dom0: &Domain) -> Result<usize, Error> {
    let own = Keys::default().with(key::MAC, "00:16:3e:01:02:03");
    let back_keys = Keys::default().with(key::FEATURE_RX_COPY, 1).with(key::FEATURE_SG, 1);
    let identity = Identity::from_keys(&own, &back_keys).map_err(|error| format!("{error}"))?;
    let mut front = Frontend::open(guest, &back_keys)?;
    let mut back = Backend::connect(dom0, guest.grants.domid(), &front.keys)?;
    front.run()?;
    for number in 0..FRAMES {
        let mut frame = [number as u8; FRAME];
        frame[..6].copy_from_slice(&identity.mac.0);
        front.send(&frame)?;
        back.serve()?;
        if front.receive()? != frame {
            return Err("another frame came back".into());
        }
    }
    Ok(FRAMES)
}

/// The frontend: handshake, both rings, and their event channel. A buffer is a page.
struct Frontend {
    handshake: Handshake,
    tx: Tx<Shared>,
    rx: Rx<Shared>,
    tx_buffers: Shared,
    rx_buffers: Shared,
    channel: <crate::events::Events as EventChannels>::Channel,
    packet: Packet,
    /// What it publishes in the store.
    keys: Keys,
}

impl Frontend {
    /// Grants rings and buffers, posts the receive buffers, and publishes the rings.
    fn open(guest: &Domain, back: &Keys) -> Result<Self, Error> {
        let mut handshake = Handshake::new(MANNER, XenbusState::Initialising);
        if handshake.next(XenbusState::InitWait, true) != Action::Offer {
            return Err("the handshake sets up no rings".into());
        }
        Negotiated::from_keys(back).map_err(|error| format!("{error}"))?;
        RxChoice::Copy.flips(back, false, 0).map_err(|error| format!("{error}"))?;
        let share = |pages| guest.grants.share(DomId::DOM0, pages, Access::ReadWrite);
        let tx_page = share(1)?;
        let rx_page = share(1)?;
        let channel = guest.events.alloc_unbound(DomId::DOM0)?;
        let info = QueueInfo {
            tx_ring: tx_page.refs()[0],
            rx_ring: rx_page.refs()[0],
            tx_event: channel.port(),
            rx_event: None,
        };
        let keys = frontend_keys(&info, Requested { csum: false, gso: false, flip: false });
        let tx = Tx::init(tx_page).map_err(|error| format!("{error}"))?;
        let mut rx = Rx::init(rx_page).map_err(|error| format!("{error}"))?;
        let tx_buffers = share(tx.slots())?;
        let rx_buffers = share(rx.slots())?;
        for buffer in 0..rx.slots() {
            rx.post(buffer as u16, rx_buffers.refs()[buffer]);
        }
        // The backend polls both rings when it connects.
        let _ = rx.commit();
        Ok(Self { handshake, tx, rx, tx_buffers, rx_buffers, channel, packet: Packet::default(), keys })
    }

    /// Lets frames flow once both ends are Connected.
    fn run(&mut self) -> Result<(), Error> {
        match self.handshake.next(XenbusState::Connected, true) {
            Action::Connected => Ok(()),
            action => Err(format!("{action:?}").into()),
        }
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), Error> {
        while self.tx.reap().map_err(|fault| format!("{fault}"))?.is_some() {}
        let buffer = self.tx.reserve().ok_or("no free buffer")?;
        let start = usize::from(buffer) * PAGE_SIZE;
        self.tx_buffers.slice(start, frame.len()).ok_or("inside")?.copy_from(frame);
        let gref = self.tx_buffers.refs()[usize::from(buffer)];
        let fragment = Fragment { buffer, gref, offset: 0, size: frame.len() as u16 };
        if !self.tx.send_one(fragment, TxFlags::empty()) {
            return Err("the ring is full".into());
        }
        if self.tx.commit().wanted() {
            self.channel.notify()?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<[u8; FRAME], Error> {
        self.channel.take()?;
        if !self.rx.poll(&mut self.packet).map_err(|fault| format!("{fault}"))? {
            return Err("no frame".into());
        }
        let mut frame = [0; FRAME];
        let fragment = self.packet.fragments()[0];
        let start = usize::from(fragment.buffer) * PAGE_SIZE + usize::from(fragment.offset);
        self.rx_buffers.slice(start, FRAME).ok_or("inside")?.copy_to(&mut frame);
        for &buffer in self.packet.buffers() {
            self.rx.post(buffer, self.rx_buffers.refs()[usize::from(buffer)]);
        }
        let _ = self.rx.commit();
        self.rx.arm().map_err(|fault| format!("{fault}"))?;
        Ok(frame)
    }
}

/// The other end: copies each frame into the buffer posted next.
struct Backend<'a> {
    dom0: &'a Domain,
    guest: DomId,
    tx: Back<netif::Tx, Contiguous>,
    rx: Back<netif::Rx, Contiguous>,
    channel: <crate::events::Events as EventChannels>::Channel,
}

impl<'a> Backend<'a> {
    fn connect(dom0: &'a Domain, guest: DomId, front: &Keys) -> Result<Self, Error> {
        let number = |name| front.need::<u32>(name).map_err(|error| format!("{error}"));
        let map = |gref| dom0.grants.map_contiguous(guest, &[GrantRef(gref)], Access::ReadWrite);
        let tx = Back::attach(map(number(key::TX_RING_REF)?)?).map_err(|error| format!("{error}"))?;
        let rx = Back::attach(map(number(key::RX_RING_REF)?)?).map_err(|error| format!("{error}"))?;
        let channel = dom0.events.bind_interdomain(guest, EventPort(number(key::EVENT_CHANNEL)?))?;
        Ok(Self { dom0, guest, tx, rx, channel })
    }

    fn serve(&mut self) -> Result<(), Error> {
        self.channel.take()?;
        while let Some(slot) = self.tx.pop().map_err(|fault| format!("{fault}"))? {
            let sent = slot.request();
            let posted = self.rx.pop().map_err(|fault| format!("{fault}"))?.ok_or("no buffer is posted")?;
            let source = CopyPtr::Grant { domid: self.guest, gref: sent.gref, offset: sent.offset };
            let dest = CopyPtr::Grant { domid: self.guest, gref: posted.gref, offset: 0 };
            let mut ops = [CopyOp::new(source, dest, sent.size)];
            self.dom0.grants.copy(&mut ops)?;
            if !ops[0].status.is_okay() {
                return Err(format!("a copy ended with {}", ops[0].status).into());
            }
            self.tx.push(&TxResponse { id: sent.id, status: Status::OKAY });
            let response =
                RxResponse { id: posted.id, offset: 0, flags: RxFlags::empty(), status: sent.size as i16 };
            self.rx.push(&response.into());
        }
        let is_notified = self.tx.commit().wanted() | self.rx.commit().wanted();
        if is_notified {
            self.channel.notify()?;
        }
        self.tx.arm().map_err(|fault| format!("{fault}"))?;
        Ok(())
    }
}
