//! Headers of packets, kept ready for the hosts to which packets go.

use std::net::SocketAddrV4;
use tightbeam_proto::wire::{Envelope, ethernet};
use tightbeam_segment::Route;

/// Hosts to which headers are kept ready; more take each other's place.
const READY: usize = 64;

/// The headers, each at the place that its host's address and port say.
pub(crate) struct Envelopes {
    local: SocketAddrV4,
    source: [u8; 6],
    ready: Box<[Option<(Route, Envelope)>; READY]>,
}

impl Envelopes {
    /// Those of packets from an address and port, and an Ethernet address, of ours.
    pub(crate) fn new(local: SocketAddrV4, source: [u8; 6]) -> Envelopes {
        Envelopes {
            local,
            source,
            ready: Box::new([const { None }; READY]),
        }
    }

    /// Those of packets to a host, made if they are not there.
    #[inline]
    pub(crate) fn to(&mut self, to: &Route) -> &Envelope {
        let [.., low] = to.to.ip().octets();
        let place = (usize::from(low) ^ usize::from(to.to.port())) % READY;
        let slot = &mut self.ready[place];
        if slot.as_ref().is_none_or(|(known, _)| known != to) {
            *slot = None;
        }
        let (_, envelope) = slot.get_or_insert_with(|| {
            let link = ethernet::Repr {
                destination: to.link,
                source: self.source,
            };
            (*to, Envelope::new(link, self.local, to.to))
        });
        envelope
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tightbeam_proto::wire::{Datagram, ENVELOPE, UdpSum};

    /// More hosts than places, each asked for again and again: never another one's headers.
    #[test]
    fn each_host_has_its_own_headers() {
        let local = "10.0.0.1:7000".parse().unwrap();
        let mut envelopes = Envelopes::new(local, [2; 6]);
        for n in (0..1000u16).chain(0..1000) {
            let [high, low] = (n / 3).to_be_bytes();
            let route = Route {
                to: SocketAddrV4::new([10, 1, high, low].into(), 7000 + n % 3),
                link: [4, 0, 0, 0, high, low],
            };
            let mut frame = [0; ENVELOPE];
            envelopes.to(&route).seal(&mut frame, 0, UdpSum::None);
            let read = Datagram::parse(&frame).unwrap();
            assert_eq!((read.destination, read.source), (route.to, local));
            assert_eq!(read.link.destination, route.link);
        }
    }
}
