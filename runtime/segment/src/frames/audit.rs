//! What an audit of a pool says.

/// How many frames are where, of one pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolAudit {
    /// All of them.
    pub frames: usize,
    /// In no use.
    pub free: usize,
    /// With somebody here who writes them, or keeps them complete.
    pub out: usize,
    /// Lent to one receiver or several.
    pub lent: usize,
    /// In no place or in two: 0, or there is a mistake in this library.
    pub astray: usize,
    /// Bytes of memory.
    pub bytes: usize,
}
