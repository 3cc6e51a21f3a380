//! Who a segment belongs to, and the `format` and `attach` steps of its life cycle.

use crate::layout::{IDENTITY_LINE, LAYOUT_HASH, Layout, VERSION};
use crate::lines::{OwnLines, PeerLines};

/// "tightbm" and a byte that no text has.
const MAGIC: u64 = u64::from_le_bytes(*b"tightbm\x9d");

const WORD_MAGIC: usize = 0;
const WORD_VERSION: usize = 1;
const WORD_LAYOUT: usize = 2;
const WORD_PAGE: usize = 3;
const WORD_INCARNATION: usize = 4; // and 5
const WORD_DEPTH: usize = 6;
const WORD_LINES: usize = 7;

/// 128 random bits, new for each segment: nothing of an earlier life of a peer is believed (I10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation(pub [u64; 2]);

/// What a side says of its segment, both in the opening exchange and in the segment's first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Protocol version; see [`VERSION`].
    pub version: u32,
    /// Hash of every offset that both sides must agree on; see [`LAYOUT_HASH`].
    pub layout_hash: u64,
    /// Page size of the machine in bytes.
    pub page_size: u32,
    /// Ring depth in slots.
    pub depth: u32,
    /// Random, new for each segment.
    pub incarnation: Incarnation,
}

/// Why two sides refuse each other. Each names both values: *ours*, then *theirs*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// The other side is not a Tightbeam segment.
    #[error("not a Tightbeam segment (magic {found:#018x})")]
    Magic {
        /// The word found where the magic belongs.
        found: u64,
    },
    /// Different protocol versions: rebuild the older side.
    #[error(
        "protocol version differs: ours is {ours}, the peer's is {theirs}; build both sides from the same release"
    )]
    Version {
        /// Our version.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// Different layouts under the same version: rebuild both sides.
    #[error(
        "segment layout differs: ours is {ours:#018x}, the peer's is {theirs:#018x}; build both sides from the same release"
    )]
    Layout {
        /// Our hash.
        ours: u64,
        /// The peer's.
        theirs: u64,
    },
    /// Different page sizes.
    #[error("page size differs: ours is {ours} bytes, the peer's is {theirs}")]
    PageSize {
        /// Ours in bytes.
        ours: u32,
        /// The peer's in bytes.
        theirs: u32,
    },
    /// A depth that no layout has.
    #[error("the peer alleges a ring depth of {depth}")]
    Depth {
        /// The alleged depth.
        depth: u32,
    },
    /// The segment is smaller than its depth needs.
    #[error("the peer's segment has {lines} lines, its depth needs {needed}")]
    TooSmall {
        /// Lines that are mapped.
        lines: usize,
        /// Lines that the depth needs.
        needed: usize,
    },
    /// The segment says something else than the opening exchange did.
    #[error("the peer's segment does not say what the peer said in the opening exchange")]
    Contradiction,
}

impl Identity {
    /// The identity of a segment of ours with this layout.
    pub fn ours(layout: Layout, page_size: u32, incarnation: Incarnation) -> Identity {
        Identity {
            version: VERSION,
            layout_hash: LAYOUT_HASH,
            page_size,
            depth: layout.depth() as u32,
            incarnation,
        }
    }

    /// Checks what a peer says of itself against what this side was built with.
    pub fn check(&self, page_size: u32) -> Result<Layout, Mismatch> {
        if self.version != VERSION {
            return Err(Mismatch::Version {
                ours: VERSION,
                theirs: self.version,
            });
        }
        if self.layout_hash != LAYOUT_HASH {
            return Err(Mismatch::Layout {
                ours: LAYOUT_HASH,
                theirs: self.layout_hash,
            });
        }
        if self.page_size != page_size {
            return Err(Mismatch::PageSize {
                ours: page_size,
                theirs: self.page_size,
            });
        }
        Layout::new(self.depth as usize).map_err(|_| Mismatch::Depth { depth: self.depth })
    }
}

/// My segment with its identity written: ready for a [`Port`](crate::Port).
pub struct Formatted {
    pub(crate) lines: OwnLines,
    pub(crate) layout: Layout,
}

/// The peer's segment, its identity checked: ready for a [`Port`](crate::Port).
pub struct Attached {
    pub(crate) lines: PeerLines,
    pub(crate) layout: Layout,
}

impl Layout {
    /// Writes the identity into fresh, zeroed memory of mine.
    ///
    /// # Panics
    ///
    /// If the memory is smaller than [`lines`](Self::lines): our own mistake.
    pub fn format(self, lines: OwnLines, identity: &Identity) -> Formatted {
        assert!(lines.count() >= self.lines(), "segment too small");
        assert_eq!(identity.depth as usize, self.depth());
        let line = lines.head::<IDENTITY_LINE>();
        line.store(WORD_VERSION, u64::from(identity.version));
        line.store(WORD_LAYOUT, identity.layout_hash);
        line.store(WORD_PAGE, u64::from(identity.page_size));
        line.store(WORD_INCARNATION, identity.incarnation.0[0]);
        line.store(WORD_INCARNATION + 1, identity.incarnation.0[1]);
        line.store(WORD_DEPTH, u64::from(identity.depth));
        line.store(WORD_LINES, self.lines() as u64);
        line.publish(WORD_MAGIC, MAGIC);
        Formatted {
            lines,
            layout: self,
        }
    }

    /// Takes the peer's memory, whose identity must be what the peer `said` in the opening exchange.
    pub fn attach(lines: PeerLines, said: &Identity, page_size: u32) -> Result<Attached, Mismatch> {
        let layout = said.check(page_size)?;
        if lines.count() < layout.lines() {
            return Err(Mismatch::TooSmall {
                lines: lines.count(),
                needed: layout.lines(),
            });
        }
        let line = lines.head::<IDENTITY_LINE>();
        let found = line.load_acquire(WORD_MAGIC);
        if found != MAGIC {
            return Err(Mismatch::Magic { found });
        }
        let matches = line.load(WORD_VERSION) == u64::from(said.version)
            && line.load(WORD_LAYOUT) == said.layout_hash
            && line.load(WORD_PAGE) == u64::from(said.page_size)
            && line.load(WORD_INCARNATION) == said.incarnation.0[0]
            && line.load(WORD_INCARNATION + 1) == said.incarnation.0[1]
            && line.load(WORD_DEPTH) == u64::from(said.depth)
            && line.load(WORD_LINES) == layout.lines() as u64;
        if !matches {
            return Err(Mismatch::Contradiction);
        }
        Ok(Attached { lines, layout })
    }
}
