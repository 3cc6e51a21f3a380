//! Many datagrams in one call: `sendmmsg` and `recvmmsg` over buffers that are prepared once.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The length of an address, as the kernel counts it.
const NAME: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

/// A fixed number of message buffers with the headers that the kernel wants, built once and used again and again, each in one
/// direction.
pub struct MessageBatch {
    headers: Box<[libc::mmsghdr]>,
    /// Pointed to by `headers`.
    vectors: *mut [libc::iovec],
    /// Pointed to by `headers`: one for each, or none at all.
    names: *mut [libc::sockaddr_in],
    /// Pointed to by `vectors`; reached through raw pointers alone.
    bytes: *mut [u8],
    stride: usize,
    size: usize,
}

// SAFETY:
// aliasing: the pointers are to allocations that this value alone owns, as boxes would be.
// lifetime: none is bound to a thread.
unsafe impl Send for MessageBatch {}

impl MessageBatch {
    /// Makes `count` buffers of `size` bytes each, both at least 1, for a connected socket.
    pub fn new(count: usize, size: usize) -> MessageBatch {
        MessageBatch::build(count, size, false)
    }

    /// The same with an IPv4 address for each message.
    pub fn with_names(count: usize, size: usize) -> MessageBatch {
        MessageBatch::build(count, size, true)
    }

    fn build(count: usize, size: usize, named: bool) -> MessageBatch {
        let (count, size) = (count.max(1), size.max(1));
        // A line for each, so that neighbours do not share one.
        let stride = size.next_multiple_of(64);
        let bytes = Box::into_raw(vec![0u8; count * stride].into_boxed_slice());
        let vectors: Box<[libc::iovec]> = (0..count)
            .map(|index| libc::iovec {
                iov_base: bytes.cast::<u8>().wrapping_add(index * stride).cast(),
                iov_len: size,
            })
            .collect();
        let vectors = Box::into_raw(vectors);
        let base = vectors.cast::<libc::iovec>();
        let names = vec![sockaddr(UNNAMED); if named { count } else { 0 }];
        let names = Box::into_raw(names.into_boxed_slice());
        let headers = (0..count)
            .map(|index| {
                // SAFETY: initialised: all zero bytes are a valid mmsghdr, with null pointers and no lengths.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = base.wrapping_add(index);
                header.msg_hdr.msg_iovlen = 1;
                if named {
                    let name = names.cast::<libc::sockaddr_in>().wrapping_add(index);
                    header.msg_hdr.msg_name = name.cast();
                    header.msg_hdr.msg_namelen = NAME;
                }
                header
            })
            .collect();
        MessageBatch {
            headers,
            vectors,
            names,
            bytes,
            stride,
            size,
        }
    }

    /// How many buffers there are.
    pub fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// The bytes that message `index` has when it is sent.
    ///
    /// # Panics
    ///
    /// If there are fewer buffers.
    pub fn outgoing(&mut self, index: usize) -> &mut [u8] {
        assert!(index < self.headers.len());
        let start = self.bytes.cast::<u8>().wrapping_add(index * self.stride);
        // SAFETY:
        // bounds: index < count, and each buffer has size <= stride bytes.
        // aliasing: self is borrowed mutably, and the kernel uses the buffers during a call only.
        // lifetime: the allocation lives until drop.
        unsafe { std::slice::from_raw_parts_mut(start, self.size) }
    }

    /// Message `index` has so many of its buffer's bytes when it is sent, and goes to this address if messages have addresses.
    /// Without this it has all of them.
    ///
    /// # Panics
    ///
    /// If there are fewer buffers, or bytes in one.
    pub fn address(&mut self, index: usize, length: usize, to: SocketAddrV4) {
        assert!(index < self.headers.len() && length <= self.size);
        let vector = self.vectors.cast::<libc::iovec>().wrapping_add(index);
        // SAFETY:
        // bounds: there is a vector for each header, and index < their number.
        // aliasing: self is borrowed mutably, and the kernel reads the vectors during a call only.
        unsafe { (*vector).iov_len = length };
        if index < self.names.len() {
            let name = self.names.cast::<libc::sockaddr_in>().wrapping_add(index);
            // SAFETY: bounds, aliasing: as above, of the names.
            unsafe { *name = sockaddr(to) };
        }
    }

    /// Who sent message `index` of the last [`receive`](Self::receive); `None` if messages have no addresses here.
    ///
    /// # Panics
    ///
    /// If there are fewer buffers.
    pub fn sender(&self, index: usize) -> Option<SocketAddrV4> {
        if self.headers[index].msg_hdr.msg_namelen != NAME || index >= self.names.len() {
            return None;
        }
        let name = self.names.cast::<libc::sockaddr_in>().wrapping_add(index);
        // SAFETY:
        // bounds: index is below the number of names.
        // initialised: they were made whole, and the kernel writes whole addresses.
        // aliasing: self is borrowed, and the kernel writes names during a call only, which borrows self mutably.
        let name = unsafe { *name };
        let address = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
        Some(SocketAddrV4::new(address, u16::from_be(name.sin_port)))
    }

    /// Whether message `index` of the last [`receive`](Self::receive) was longer than its buffer.
    ///
    /// # Panics
    ///
    /// If there are fewer buffers.
    pub fn truncated(&self, index: usize) -> bool {
        self.headers[index].msg_hdr.msg_flags & libc::MSG_TRUNC != 0
    }

    /// Message `index` of the last [`receive`](Self::receive).
    ///
    /// # Panics
    ///
    /// If there are fewer buffers.
    pub fn incoming(&self, index: usize) -> &[u8] {
        let length = (self.headers[index].msg_len as usize).min(self.size);
        let start = self.bytes.cast::<u8>().wrapping_add(index * self.stride);
        // SAFETY:
        // bounds: index was checked by the indexing above, and length <= size <= stride.
        // aliasing: self is borrowed, and the kernel writes the buffers during a call only, which borrows self mutably.
        // lifetime: the allocation lives until drop.
        unsafe { std::slice::from_raw_parts(start, length) }
    }

    /// Sends the buffers from `first` up to `end`, each as one message of its full size; returns how many were taken.
    ///
    /// # Panics
    ///
    /// If `first..end` is no range of buffers.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        first: usize,
        end: usize,
        wait: bool,
    ) -> io::Result<usize> {
        let headers = &mut self.headers[first..end];
        let flags = libc::MSG_NOSIGNAL | if wait { 0 } else { libc::MSG_DONTWAIT };
        if let [only] = headers {
            return send_one(socket, &only.msg_hdr, flags);
        }
        // SAFETY: bounds: `headers` are that many, and each points to one vector of one buffer and perhaps one name of its length,
        // all owned by self.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                flags as _,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives as many messages as there are and fit; with `wait` it sleeps for the first one.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, wait: bool) -> io::Result<usize> {
        self.receive_at_most(self.headers.len(), socket, wait)
    }

    /// Receives as many messages as there are, at most `most`; with `wait` it sleeps for the first one. To look for one takes less time
    /// than to look for several of which one is there, and much less if none is.
    pub fn receive_at_most(
        &mut self,
        most: usize,
        socket: BorrowedFd<'_>,
        wait: bool,
    ) -> io::Result<usize> {
        let flags = if wait {
            libc::MSG_WAITFORONE
        } else {
            libc::MSG_DONTWAIT
        };
        let count = self.headers.len();
        let headers = &mut self.headers[..most.min(count)];
        if !self.names.is_empty() {
            // The kernel has put the lengths of the last addresses there.
            for header in headers.iter_mut() {
                header.msg_hdr.msg_namelen = NAME;
            }
        }
        if let [only] = headers {
            return receive_one(socket, only, flags & libc::MSG_DONTWAIT).map(|()| 1);
        }
        // SAFETY: bounds: `headers` are that many, and each points to one vector of one buffer and perhaps one name of its length,
        // all owned by self. No timeout is passed.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                flags as _,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }
}

/// Sends what one header describes. `sendmmsg` takes a tenth longer for one, because the kernel copies the header and the vector.
fn send_one(
    socket: BorrowedFd<'_>,
    header: &libc::msghdr,
    flags: libc::c_int,
) -> io::Result<usize> {
    // SAFETY: bounds, initialised: each header of a batch points to one vector, for as long as the batch lives.
    let vector = unsafe { *header.msg_iov };
    // SAFETY: bounds: the vector has that many bytes of the batch's buffer; the name is null with length 0, or an address of
    // that length.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            vector.iov_base,
            vector.iov_len,
            flags,
            header.msg_name.cast(),
            header.msg_namelen,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
    Ok(1)
}

/// Receives one message as one header describes, and notes there what `recvmmsg` would.
fn receive_one(
    socket: BorrowedFd<'_>,
    header: &mut libc::mmsghdr,
    flags: libc::c_int,
) -> io::Result<()> {
    let whole = &mut header.msg_hdr;
    // SAFETY: bounds, initialised: each header of a batch points to one vector, for as long as the batch lives.
    let vector = unsafe { *whole.msg_iov };
    let length: *mut libc::socklen_t = match whole.msg_name.is_null() {
        true => std::ptr::null_mut(),
        false => &mut whole.msg_namelen,
    };
    // With MSG_TRUNC it says how long the message was, not how much of it there was room for.
    // SAFETY: bounds: the vector has that many bytes of the batch's buffer; the name is null, or has the length that is given.
    // aliasing: the batch is borrowed mutably by the caller.
    let got = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            vector.iov_base,
            vector.iov_len,
            flags | libc::MSG_TRUNC,
            whole.msg_name.cast(),
            length,
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    whole.msg_flags = match got > vector.iov_len {
        true => libc::MSG_TRUNC,
        false => 0,
    };
    header.msg_len = got.min(vector.iov_len) as libc::c_uint;
    Ok(())
}

/// No address.
const UNNAMED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

/// As the kernel wants it.
pub(crate) fn sockaddr(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(*address.ip()).to_be(),
        },
        sin_zero: [0; 8],
    }
}

impl Drop for MessageBatch {
    fn drop(&mut self) {
        // SAFETY: lifetime: the pointer came from Box::into_raw, and nothing else reads the vectors outside a call.
        drop(unsafe { Box::from_raw(self.vectors) });
        // SAFETY: lifetime: as above, of the names.
        drop(unsafe { Box::from_raw(self.names) });
        // SAFETY: lifetime: the pointer came from Box::into_raw, and no borrow of the buffers outlives self.
        drop(unsafe { Box::from_raw(self.bytes) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_batch_arrives_whole_and_in_order() {
        let (left, right) = UnixDatagram::pair().unwrap();
        let mut out = MessageBatch::new(4, 5);
        for index in 0..4 {
            out.outgoing(index).fill(index as u8);
        }
        assert_eq!(out.send(left.as_fd(), 1, 4, true).unwrap(), 3);
        let mut back = MessageBatch::new(8, 5);
        assert_eq!(back.receive(right.as_fd(), true).unwrap(), 3);
        assert_eq!(back.incoming(0), [1; 5]);
        assert_eq!(back.incoming(2), [3; 5]);
        let empty = back.receive(right.as_fd(), false).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn messages_have_lengths_and_addresses_of_their_own() {
        exchange(3, 2);
    }

    #[test]
    fn messages_that_go_one_by_one_have_too() {
        exchange(1, 1);
    }

    /// Three messages of 0 to 2 bytes, so many a call; of two bytes one fits.
    fn exchange(sent: usize, most: usize) {
        let [near, far] =
            [0, 1].map(|_| std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let address = |socket: &std::net::UdpSocket| match socket.local_addr().unwrap() {
            std::net::SocketAddr::V4(address) => address,
            other => panic!("{other} is not IPv4"),
        };
        let mut out = MessageBatch::with_names(3, 16);
        for length in 0..3 {
            out.outgoing(length).fill(length as u8);
            out.address(length, length, address(&far));
        }
        for first in (0..3).step_by(sent) {
            let got = out.send(near.as_fd(), first, first + sent, true).unwrap();
            assert_eq!(got, sent);
        }
        let mut back = MessageBatch::with_names(8, 1);
        let mut came = 0;
        while came < 3 {
            let got = back.receive_at_most(most, far.as_fd(), true).unwrap();
            for index in 0..got {
                assert_eq!(back.sender(index), Some(address(&near)));
                assert_eq!(back.incoming(index), vec![came as u8; came.min(1)]);
                assert_eq!(back.truncated(index), came == 2);
                came += 1;
            }
            assert!(got <= most);
        }
        let empty = back.receive_at_most(most, far.as_fd(), false).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
    }
}
