//! The 42 bytes in front of a payload: kept ready for one peer, and taken off what arrives.

use super::{Malformed, checksum, ethernet, ipv4, udp};
use core::net::SocketAddrV4;

/// Bytes of the Ethernet, IPv4 and UDP headers together.
pub const ENVELOPE: usize = ethernet::HEADER + ipv4::HEADER + udp::HEADER;

const IP: usize = ethernet::HEADER;
const UDP: usize = IP + ipv4::HEADER;

/// What the UDP checksum field says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UdpSum {
    /// Nothing: the field is 0. For links that break no bytes, `veth` and `lo`, where our own CRC says enough.
    None,
    /// The sum over addresses, header and payload.
    Full,
}

/// The headers of packets from here to one peer, ready but for the length.
///
/// ```
/// use tightbeam_proto::wire::{Datagram, ENVELOPE, Envelope, UdpSum, ethernet};
///
/// let link = ethernet::Repr { destination: [2; 6], source: [4; 6] };
/// let from = "10.0.0.1:7000".parse().unwrap();
/// let to = "10.0.0.2:7001".parse().unwrap();
/// let envelope = Envelope::new(link, from, to);
///
/// let mut frame = [0; 128];
/// frame[ENVELOPE..ENVELOPE + 5].copy_from_slice(b"hello");
/// let len = envelope.seal(&mut frame, 5, UdpSum::Full);
///
/// let read = Datagram::parse(&frame[..len])?;
/// assert_eq!((read.source, read.destination), (from, to));
/// assert_eq!(read.payload, b"hello");
/// # Ok::<(), tightbeam_proto::wire::Malformed>(())
/// ```
#[derive(Debug, Clone)]
pub struct Envelope {
    ready: [u8; ENVELOPE],
    source: SocketAddrV4,
    destination: SocketAddrV4,
}

impl Envelope {
    /// Prepares the headers of packets over this link, between these addresses and ports.
    pub fn new(link: ethernet::Repr, source: SocketAddrV4, destination: SocketAddrV4) -> Envelope {
        let mut ready = [0; ENVELOPE];
        link.emit(&mut ready);
        ipv4::Repr::new(*source.ip(), *destination.ip(), udp::HEADER as u16).emit(&mut ready[IP..]);
        let ports = udp::Repr {
            source: source.port(),
            destination: destination.port(),
            payload_len: 0,
            checksum: 0,
        };
        ports.emit(&mut ready[UDP..]);
        Envelope {
            ready,
            source,
            destination,
        }
    }

    /// Where the packets go.
    pub fn destination(&self) -> SocketAddrV4 {
        self.destination
    }

    /// Writes the headers in front of a payload of so many bytes that stands at [`ENVELOPE`]. How long the frame is.
    ///
    /// The IPv4 checksum is patched for the length, not made anew.
    ///
    /// # Panics
    ///
    /// If the frame is too short for that, or the payload longer than 65,507 bytes: the caller's mistake.
    #[inline]
    pub fn seal(&self, frame: &mut [u8], payload_len: usize, sum: UdpSum) -> usize {
        assert!(
            payload_len <= 65_507,
            "{payload_len} bytes are no UDP packet"
        );
        let frame = &mut frame[..ENVELOPE + payload_len];
        frame[..ENVELOPE].copy_from_slice(&self.ready);
        let udp_len = (udp::HEADER + payload_len) as u16;
        let before = (ipv4::HEADER + udp::HEADER) as u16;
        let total = ipv4::HEADER as u16 + udp_len;
        let ip = &mut frame[IP..];
        let patched = checksum::patched(super::be16(ip, ipv4::CHECKSUM), before, total);
        ip[ipv4::TOTAL_LENGTH..][..2].copy_from_slice(&total.to_be_bytes());
        ip[ipv4::CHECKSUM..][..2].copy_from_slice(&patched.to_be_bytes());
        let packet = &mut frame[UDP..];
        packet[udp::LENGTH..][..2].copy_from_slice(&udp_len.to_be_bytes());
        if sum == UdpSum::Full {
            udp::seal(packet, *self.source.ip(), *self.destination.ip());
        }
        frame.len()
    }
}

/// A UDP packet out of an Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The hardware addresses.
    pub link: ethernet::Repr,
    /// Who sent it, as it says: an allegation.
    pub source: SocketAddrV4,
    /// The address and port that it is for.
    pub destination: SocketAddrV4,
    /// The UDP checksum field; 0 if the sender has made none.
    pub checksum: u16,
    /// What UDP carries, without padding.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Takes the headers off a frame. [`Malformed::Foreign`] if it is none of those that we read: VLAN tags, IP options, fragments,
    /// other protocols.
    ///
    /// The UDP checksum is not looked at: our CRC says more, and a kernel socket's frames carry half a sum over `veth` and `lo`.
    /// [`checksum_holds`](Self::checksum_holds) looks.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Result<Datagram<'a>, Malformed> {
        let link = ethernet::Repr::parse(&ethernet::Packet::new_checked(frame)?)?;
        let frame = frame.get(IP..).unwrap_or_default();
        let ip = ipv4::Repr::parse(&ipv4::Packet::new_checked(frame)?)?;
        let end = ipv4::HEADER + usize::from(ip.payload_len);
        let frame = frame.get(ipv4::HEADER..end).unwrap_or_default();
        let udp = udp::Repr::parse(&udp::Packet::new_checked(frame)?);
        let end = udp::HEADER + usize::from(udp.payload_len);
        Ok(Datagram {
            link,
            source: SocketAddrV4::new(ip.source, udp.source),
            destination: SocketAddrV4::new(ip.destination, udp.destination),
            checksum: udp.checksum,
            payload: frame.get(udp::HEADER..end).unwrap_or_default(),
        })
    }

    /// Whether the UDP checksum is none, or right.
    pub fn checksum_holds(&self) -> bool {
        if self.checksum == 0 {
            return true;
        }
        let mut header = [0; udp::HEADER];
        let repr = udp::Repr {
            source: self.source.port(),
            destination: self.destination.port(),
            payload_len: self.payload.len() as u16,
            checksum: self.checksum,
        };
        repr.emit(&mut header);
        let udp_len = (udp::HEADER + self.payload.len()) as u16;
        let pseudo = ipv4::Repr::pseudo_sum(*self.source.ip(), *self.destination.ip(), udp_len);
        let sum = checksum::sum(self.payload, checksum::sum(&header, pseudo));
        checksum::finish(sum) == 0
    }
}
