//! Size classes of frames: how much memory one of so many bytes takes.

use crate::layout::HEADROOM;

const PAGE: usize = 4096;

/// Bytes from one frame to the next, for frames of so many bytes: powers of two and the middles between them, and what lies in
/// front of them; at least a page.
pub(super) fn stride_of(len: usize) -> usize {
    let above = len.next_power_of_two();
    let middle = above / 4 * 3;
    let class = match middle >= len && middle >= PAGE {
        true => middle,
        false => above,
    };
    match len + HEADROOM <= PAGE {
        true => PAGE,
        false => (class + HEADROOM).next_multiple_of(PAGE),
    }
}
