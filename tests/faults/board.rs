//! Numbers that all processes of a test share beside the library, seeded random numbers, messages whose every byte is
//! known, and what a process holds.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tightbeam::MAX_INLINE;
use tightbeam_sys::memory::SharedWords;

/// Words of each process on the board.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
pub(crate) enum Word {
    /// The message that it is about to send, and the last that it has sent.
    Attempted,
    Published,
    /// What came from the other side in order and with the right bytes, and what did not.
    Received,
    Wrong,
    /// Calls that were answered, and errors that nobody may see.
    Answered,
    Failed,
    /// Ends of channels that it was told of.
    Ends,
    /// What the test wants of it.
    Wish,
}

const WORDS_EACH: usize = 8;
/// Those who are there all the time have the first places; the others share the rest, one after the other.
pub(crate) const FIXED: u64 = 8;
pub(crate) const PLACES: u64 = FIXED + 128;

/// Where somebody's words are.
pub(crate) fn place(of: u64) -> usize {
    match of {
        0..FIXED => of as usize,
        _ => (FIXED + of % (PLACES - FIXED)) as usize,
    }
}

pub(crate) struct Board(SharedWords);

impl Board {
    /// The board that belongs to an address; whoever asks first makes it.
    pub(crate) fn of(address: &str) -> Board {
        let socket = address.strip_prefix("shm:").expect("a shm address");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(format!("{socket}.board"))
            .expect("a file in a private directory");
        let words = WORDS_EACH * PLACES as usize;
        // Each word has its own cache lines.
        file.set_len(128 * words as u64)
            .expect("room for the board");
        Board(SharedWords::open(OwnedFd::from(file), words).expect("a mapping"))
    }

    fn word(&self, of: u64, word: Word) -> &std::sync::atomic::AtomicU64 {
        self.0.word(place(of) * WORDS_EACH + word as usize)
    }

    pub(crate) fn get(&self, of: u64, word: Word) -> u64 {
        self.word(of, word).load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, of: u64, word: Word, value: u64) {
        self.word(of, word).store(value, Ordering::Release);
    }

    pub(crate) fn add(&self, of: u64, word: Word, value: u64) {
        self.word(of, word).fetch_add(value, Ordering::AcqRel);
    }

    /// A place for somebody new.
    pub(crate) fn clear(&self, of: u64) {
        for word in [
            Word::Attempted,
            Word::Published,
            Word::Received,
            Word::Wrong,
            Word::Answered,
            Word::Failed,
            Word::Ends,
            Word::Wish,
        ] {
            self.set(of, word, 0);
        }
    }
}

/// The random numbers of Marsaglia's xorshift.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        // Spread, so that neighbouring seeds have nothing in common; and never 0.
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((self.next() >> 32) * end) >> 32
    }

    pub(crate) fn micros(&mut self, most: u64) -> Duration {
        Duration::from_micros(self.below(most))
    }

    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// The seed of this run, which `TIGHTBEAM_SEED` may give; printed.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("TIGHTBEAM_SEED").ok();
    let given = given.and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let words = tightbeam_sys::memory::random_words().expect("random words");
        words[0] >> 32
    });
    println!("TIGHTBEAM_SEED={seed}");
    seed
}

pub(crate) fn long() -> bool {
    std::env::var_os("TIGHTBEAM_LONG").is_some()
}

/// Bytes in front of what fills a message: who sent it, and its number.
const HEAD: usize = 16;

fn mixed(sender: u64, number: u64) -> u64 {
    let mixed = (sender << 40 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Room for the longest message: one that goes in a frame.
pub(crate) type Room = [u8; 6000];

pub(crate) const fn room() -> Room {
    [0; _]
}

/// Writes the message with this number into `bytes` and returns it. Of all that is in it the receiver knows each bit.
pub(crate) fn fill(bytes: &mut Room, sender: u64, number: u64) -> &[u8] {
    let mixed = mixed(sender, number);
    // Most are small, as most are; one in 16 may be of any length that fits into every ring, and one is longer.
    let (least, room) = match mixed >> 60 {
        0 => (HEAD, MAX_INLINE - HEAD + 1),
        1 => (MAX_INLINE + 1, bytes.len() - MAX_INLINE),
        _ => (HEAD, 57),
    };
    let len = least + (mixed as u32 as usize % room);
    bytes[..8].copy_from_slice(&sender.to_ne_bytes());
    bytes[8..16].copy_from_slice(&number.to_ne_bytes());
    for (n, chunk) in bytes[HEAD..len].chunks_mut(8).enumerate() {
        let word = mixed.rotate_left(n as u32).to_ne_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    &bytes[..len]
}

/// Whose message this is and which one, if each of its bytes is right.
pub(crate) fn read(bytes: &[u8]) -> Option<(u64, u64)> {
    let word = |at| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let (sender, number) = (word(0)?, word(8)?);
    let right = fill(&mut room(), sender, number) == bytes;
    right.then_some((sender, number))
}

/// What this process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) descriptors: usize,
    pub(crate) mappings: usize,
    pub(crate) kibibytes: u64,
}

pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// The same without those of memory for frames, which a channel makes when it needs it.
pub(crate) fn channel_descriptors() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").expect("proc").flatten();
    let is_frames = |link: &std::path::Path| link.to_string_lossy().contains("tightbeam-frames");
    let links = all.map(|entry| std::fs::read_link(entry.path()).unwrap_or_default());
    links.filter(|link| !is_frames(link)).count()
}

impl Holding {
    pub(crate) fn now() -> Holding {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("proc");
        // Of the program's own pages it is chance how many are resident at a time, in the page cache and under memory pressure.
        let kibibytes = ["Anonymous:", "Swap:"].map(|name| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
            number
                .and_then(|n| n.parse::<u64>().ok())
                .expect("a number")
        });
        Holding {
            descriptors: descriptors(),
            // The heap and the stacks come and go by themselves.
            mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
            kibibytes: kibibytes.iter().sum(),
        }
    }

    /// Nothing more than before, and at most a hundredth of memory more.
    pub(crate) fn assert_no_more_than(self, before: Holding) {
        let told = format!("{before:?}, then {self:?}");
        assert!(self.descriptors <= before.descriptors, "{told}");
        assert!(self.mappings <= before.mappings, "{told}");
        let most = before.kibibytes + (before.kibibytes / 100).max(SLACK);
        assert!(self.kibibytes <= most, "{told}");
    }
}

/// Kibibytes that a small process may need more because an allocator rounds up, and does so for each new maximum of what is alive at
/// a time: 96 in 8,500 kills, of which 8 in the last 3,500.
const SLACK: u64 = 192;

/// Percentiles of what was measured.
pub(crate) fn percentile<T: Copy>(sorted: &[T], share: f64) -> T {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}
