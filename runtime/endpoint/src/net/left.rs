//! Messages of a batch, taken apart, that are still to be sent: they need more packets than one.

/// Bytes of a message's length and handler.
const HEAD: usize = 4;

/// Messages in the order in which they came, in one piece of memory that is kept.
#[derive(Debug, Default)]
pub(super) struct Left {
    bytes: Vec<u8>,
    at: usize,
}

impl Left {
    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Adds a message of a batch, which is shorter than 65,536 bytes.
    pub(super) fn push(&mut self, handler: u16, message: &[u8]) {
        self.bytes.extend((message.len() as u16).to_ne_bytes());
        self.bytes.extend(handler.to_ne_bytes());
        self.bytes.extend(message);
    }

    /// The first message, and its handler.
    pub(super) fn first(&self) -> Option<(u16, &[u8])> {
        let (&[a, b, c, d], rest) = self.bytes[self.at..].split_first_chunk::<HEAD>()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        Some((u16::from_ne_bytes([c, d]), &rest[..len]))
    }

    /// Offers the first message; whether it was taken, and there is another one.
    pub(super) fn give(&mut self, take: impl FnOnce(u16, &[u8]) -> bool) -> bool {
        let Some((handler, bytes)) = self.first() else {
            return false;
        };
        let len = bytes.len();
        if !take(handler, bytes) {
            return false;
        }
        self.at += HEAD + len;
        if self.is_empty() {
            self.bytes.clear();
            self.at = 0;
        }
        !self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::Left;

    #[test]
    fn messages_go_in_order_and_stay_until_they_are_taken() {
        let mut left = Left::default();
        assert!(left.is_empty() && !left.give(|_, _| panic!("nothing is there")));
        for n in 0..3u8 {
            left.push(u16::from(n), &vec![n; usize::from(n)]);
        }
        assert!(left.give(|handler, bytes| handler == 0 && bytes.is_empty()));
        assert!(!left.give(|_, _| false), "no room");
        assert!(left.give(|handler, bytes| handler == 1 && bytes == [1]));
        assert!(!left.give(|handler, bytes| handler == 2 && bytes == [2, 2]));
        assert!(left.is_empty());
    }
}
