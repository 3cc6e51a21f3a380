//! What memory this process has: shown before, while and after something is asked of it, so that what grows is seen.

use serde::Serialize;
use tightbeam::{ChannelId, Endpoint};

/// At one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Memory {
    /// Of the whole process.
    pub(crate) resident_kib: u64,
    /// Mappings of segments, its own and those of others, with those of frames.
    pub(crate) segments: usize,
    pub(crate) segments_kib: u64,
    /// Its own frames, of a channel and shared ones: all that there are, in use or not.
    pub(crate) frames: usize,
}

impl Memory {
    /// As it is now.
    pub(crate) fn of(endpoint: &Endpoint, channel: ChannelId) -> Memory {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let segments = maps
            .lines()
            .filter(|line| line.contains("/memfd:tightbeam"));
        let sizes: Vec<u64> = segments.map(kibibytes).collect();
        let own = endpoint.frames(channel).map_or(0, |pool| pool.frames);
        Memory {
            resident_kib: resident(),
            segments: sizes.len(),
            segments_kib: sizes.iter().sum(),
            frames: own + endpoint.shared_frames().frames,
        }
    }
}

/// Kibibytes that this process has in memory.
pub(crate) fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split_whitespace().nth(1);
    let pages: Option<u64> = pages.and_then(|pages| pages.parse().ok());
    let page = rustix::param::page_size() as u64;
    pages.unwrap_or(0) * page / 1024
}

/// Length of a mapping, given its line of `maps`.
fn kibibytes(line: &str) -> u64 {
    let range = line
        .split(' ')
        .next()
        .and_then(|range| range.split_once('-'));
    let number = |text| u64::from_str_radix(text, 16).ok();
    let length = range.and_then(|(from, to)| number(to)?.checked_sub(number(from)?));
    length.unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::{kibibytes, resident};

    #[test]
    fn a_mapping_is_as_long_as_its_range_says() {
        let line = "7f12a8000000-7f12a8005000 rw-s 00000000 00:01 2049 /memfd:tightbeam (deleted)";
        assert_eq!(kibibytes(line), 20);
        assert_eq!(kibibytes("nothing of the kind"), 0);
    }

    #[test]
    fn this_process_has_some_memory() {
        assert!(resident() > 0);
    }
}
