//! The simplest device there is: two queues in one process. It shows that the suite asks for nothing that only a kernel could do.

use crate::suite::Pair;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use tightbeam_segment::{Capabilities, Device, DeviceError, DeviceStatus, Packet, Route};

const MAX: usize = 2_000;
const BATCH: usize = 64;
/// Packets that a receiver has room for.
const ROOM: usize = 256;

/// What has arrived at one side, and how many had no room there.
#[derive(Default)]
struct Shore {
    packets: VecDeque<Vec<u8>>,
    overrun: u64,
}

struct Local {
    address: SocketAddrV4,
    other: SocketAddrV4,
    ring: VecDeque<Vec<u8>>,
    here: Rc<RefCell<Shore>>,
    there: Rc<RefCell<Shore>>,
    sent: u64,
    received: u64,
}

pub(crate) fn pair() -> Pair {
    let [a, b] = [1, 2].map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    let [here, there] = [(), ()].map(|()| Rc::new(RefCell::new(Shore::default())));
    let local = |address, other, here: &Rc<_>, there: &Rc<_>| Local {
        address,
        other,
        ring: VecDeque::new(),
        here: Rc::clone(here),
        there: Rc::clone(there),
        sent: 0,
        received: 0,
    };
    Pair {
        near: Box::new(local(a, b, &here, &there)),
        far: Box::new(local(b, a, &there, &here)),
        there: Route {
            to: b,
            link: [0; 6],
        },
        _around: Box::new(()),
    }
}

impl Device for Local {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_packet: MAX,
            batch: BATCH,
            local: self.address,
        }
    }

    fn route(&mut self, to: SocketAddrV4) -> Result<Route, DeviceError> {
        Ok(Route { to, link: [0; 6] })
    }

    fn transmit(
        &mut self,
        to: &Route,
        len: usize,
        write: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Result<(), DeviceError> {
        assert_eq!(to.to, self.other);
        if len > MAX {
            return Err(DeviceError::TooLong { len, max: MAX });
        }
        if self.ring.len() == BATCH {
            return Err(DeviceError::Full);
        }
        let mut packet = vec![0; len];
        let used = write(&mut packet).min(len);
        packet.truncate(used);
        self.ring.push_back(packet);
        Ok(())
    }

    fn kick(&mut self) -> Result<bool, DeviceError> {
        let mut there = self.there.borrow_mut();
        for packet in self.ring.drain(..) {
            self.sent += 1;
            match there.packets.len() < ROOM {
                true => there.packets.push_back(packet),
                false => there.overrun += 1,
            }
        }
        Ok(false)
    }

    fn receive(
        &mut self,
        most: usize,
        take: &mut dyn FnMut(Packet<'_>),
    ) -> Result<usize, DeviceError> {
        let mut count = 0;
        while count < most {
            let Some(bytes) = self.here.borrow_mut().packets.pop_front() else {
                break;
            };
            let from = Route {
                to: self.other,
                link: [0; 6],
            };
            take(Packet {
                from,
                bytes: &bytes,
            });
            count += 1;
        }
        self.received += count as u64;
        Ok(count)
    }

    fn provide(&mut self) {}

    fn reclaim(&mut self) -> usize {
        0
    }

    fn status(&self) -> DeviceStatus {
        let mut status = DeviceStatus::new("local");
        status.counts = vec![
            ("sent", self.sent),
            ("received", self.received),
            ("lost_receive_ring_full", self.here.borrow().overrun),
        ];
        status
    }
}
