//! Many datagrams in one call: `sendmmsg` and `recvmmsg` over buffers that are prepared once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A fixed number of message buffers with the headers that the kernel wants, built once and used again and again.
pub struct MessageBatch {
    headers: Box<[libc::mmsghdr]>,
    /// Pointed to by `headers`.
    vectors: *mut [libc::iovec],
    /// Pointed to by `vectors`; reached through raw pointers alone.
    bytes: *mut [u8],
    stride: usize,
    size: usize,
}

impl MessageBatch {
    /// Makes `count` buffers of `size` bytes each, both at least 1.
    pub fn new(count: usize, size: usize) -> MessageBatch {
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
        let headers = (0..count)
            .map(|index| {
                // SAFETY: initialised: all zero bytes are a valid mmsghdr, with null pointers and no lengths.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = base.wrapping_add(index);
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        MessageBatch {
            headers,
            vectors,
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
        // SAFETY: bounds: `headers` are that many, and each points to one vector of one buffer, all owned by self.
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
        let flags = if wait {
            libc::MSG_WAITFORONE
        } else {
            libc::MSG_DONTWAIT
        };
        let count = self.headers.len() as libc::c_uint;
        // SAFETY: bounds: `headers` are `count`, and each points to one vector of one buffer, all owned by self. No timeout is
        // passed.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                flags as _,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for MessageBatch {
    fn drop(&mut self) {
        // SAFETY: lifetime: the pointer came from Box::into_raw, and nothing else reads the vectors outside a call.
        drop(unsafe { Box::from_raw(self.vectors) });
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
}
