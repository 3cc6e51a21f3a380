//! Bytes as a row of choices.

/// What is left of the bytes. Where nothing is left, every choice is the first one.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Input(bytes)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// As many bytes as there are, at most this many.
    pub(crate) fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        let taken = self.take(8);
        word[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(word)
    }

    /// A number below this one, which is at most 256.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// True once in so many times.
    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    pub(crate) fn one_of<T: Copy>(&mut self, menu: &[T]) -> T {
        menu[self.below(menu.len())]
    }

    /// A length, often one at which something changes.
    pub(crate) fn len(&mut self) -> usize {
        const TURNS: [usize; 14] = [0, 1, 7, 8, 55, 56, 57, 63, 64, 120, 121, 184, 1079, 1080];
        match self.below(4) {
            0 => usize::from(self.byte()),
            1 => self.word() as usize % 1081,
            _ => self.one_of(&TURNS),
        }
    }
}
