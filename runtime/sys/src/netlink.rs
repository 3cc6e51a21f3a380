//! Netlink: questions to the kernel about its network, and its answers.
//!
//! A message is a header, a fixed part, and attributes: length, kind, value, padded to four bytes. An answer is taken apart without
//! believing any length in it: what does not fit ends it.

use crate::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const HEADER: usize = 16;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const MULTI: u16 = 2;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Marks an attribute that consists of attributes.
const NESTED: u16 = 0x8000;
/// The longest message that the kernel makes of a dump.
const LONGEST: usize = 64 << 10;
/// More messages than that are no answer.
const MOST_MESSAGES: usize = 4096;

const GENERIC_CONTROL: u16 = 16;
const GENERIC_GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// A request in the making.
pub(crate) struct Request(Vec<u8>);

impl Request {
    /// Starts with the fixed part.
    pub(crate) fn new(fixed: &[u8]) -> Request {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(fixed);
        Request(bytes).padded()
    }

    /// Adds an attribute.
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Request {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.padded()
    }

    /// Adds an attribute that consists of one attribute.
    pub(crate) fn with_nested(self, kind: u16, inner: u16, value: &[u8]) -> Request {
        let nested = Request(Vec::new()).with(inner, value);
        self.with(kind | NESTED, &nested.0)
    }

    fn padded(mut self) -> Request {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// One message of an answer.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The attributes in `bytes`, each with its kind.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & !NESTED;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(field.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

/// The text of an attribute, up to its zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into()
}

fn messages(bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(rest, 0)?).ok()?;
        let message = Message {
            kind: u16_at(rest, 4)?,
            flags: u16_at(rest, 6)?,
            sequence: u32_at(rest, 8)?,
            body: rest.get(HEADER..len)?,
        };
        rest = rest.get(len.checked_next_multiple_of(4)?..).unwrap_or(&[]);
        Some(message)
    })
}

/// A netlink socket.
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

impl Netlink {
    /// One for routes and links, which also hears what is said to `groups`.
    pub(crate) fn route(groups: u32) -> Result<Netlink, Errno> {
        Netlink::open(None, groups)
    }

    /// One for generic families.
    pub(crate) fn generic() -> Result<Netlink, Errno> {
        Netlink::open(Some(netlink::GENERIC), 0)
    }

    fn open(protocol: Option<rustix::net::Protocol>, groups: u32) -> Result<Netlink, Errno> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let fd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        // The kernel answers within the call that asks. Should it not, that is an error and no wait without end.
        let bound = Some(Duration::from_secs(1));
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, bound)?;
        let sequence = Cell::new(0);
        Ok(Netlink { fd, sequence })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Asks for one thing.
    pub(crate) fn ask(&self, kind: u16, request: Request) -> Result<Vec<u8>, Errno> {
        let mut bodies = self.exchange(kind, REQUEST, request)?;
        bodies.pop().ok_or(Errno::NOENT)
    }

    /// Asks for all of a kind.
    pub(crate) fn ask_all(&self, kind: u16, request: Request) -> Result<Vec<Vec<u8>>, Errno> {
        self.exchange(kind, REQUEST | DUMP, request)
    }

    fn exchange(&self, kind: u16, flags: u16, request: Request) -> Result<Vec<Vec<u8>>, Errno> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let bytes = request.finish(kind, flags, sequence);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.fd, &bytes, SendFlags::empty(), &kernel)?;
        let mut buffer = vec![0; LONGEST];
        let mut bodies = Vec::new();
        while bodies.len() < MOST_MESSAGES {
            let (len, _) = rustix::net::recv(&self.fd, &mut buffer, RecvFlags::empty())?;
            // What was said to a group, or answers an earlier question, is none of ours.
            let ours = messages(&buffer[..len]).filter(|m| m.sequence == sequence);
            for message in ours {
                match message.kind {
                    DONE => return Ok(bodies),
                    ERROR => {
                        let errno = u32_at(message.body, 0).ok_or(Errno::IO)?;
                        let errno = (errno as i32).wrapping_neg();
                        return match errno {
                            0 => Ok(bodies),
                            _ => Err(Errno::from_raw_os_error(errno)),
                        };
                    }
                    _ => bodies.push(message.body.to_vec()),
                }
                if message.flags & MULTI == 0 {
                    return Ok(bodies);
                }
            }
        }
        Err(Errno::MSGSIZE)
    }

    /// The number of a generic family.
    pub(crate) fn family(&self, name: &str) -> Result<u16, Errno> {
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        let request = Request::new(&generic(GENERIC_GET_FAMILY)).with(FAMILY_NAME, &name);
        let answer = self.ask(GENERIC_CONTROL, request)?;
        let id = answer.get(GENERIC_FIXED..);
        let id = id.and_then(|rest| u16_at(attribute(rest, FAMILY_ID)?, 0));
        id.ok_or(Errno::NOENT)
    }
}

/// Bytes of the fixed part of a message of a generic family.
pub(crate) const GENERIC_FIXED: usize = 4;

/// The fixed part of a request to a generic family.
pub(crate) fn generic(command: u8) -> [u8; GENERIC_FIXED] {
    [command, 1, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_as_it_was_written() {
        let request = Request::new(&[9; 5]).with(3, b"abc\0").with(4, &[1, 2]);
        let request = request.with_nested(5, 6, b"inner");
        let bytes = request.finish(18, REQUEST, 77);
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.sequence), (18, 77));
        let rest = &message.body[8..];
        let kinds: Vec<u16> = attributes(rest).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [3, 4, 5]);
        assert_eq!(text(attribute(rest, 3).unwrap()), "abc");
        let nested = attribute(rest, 5).unwrap();
        assert_eq!(attribute(nested, 6), Some(&b"inner"[..]));
    }

    #[test]
    fn lengths_that_lie_end_the_answer() {
        for len in [0u16, 3, 9, u16::MAX] {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend([1, 0, 7, 7, 7, 7]);
            assert_eq!(attributes(&bytes).count(), 0, "{len}");
        }
        for len in [0u32, 15, 21, u32::MAX] {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.resize(20, 0);
            assert_eq!(messages(&bytes).count(), 0, "{len}");
        }
        assert_eq!(attributes(&[4]).count(), 0);
    }
}
