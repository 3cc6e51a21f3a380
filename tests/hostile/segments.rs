//! x
use crate::liar::Side;
pub(crate) fn act(_: Side, _: &str, _: &str) -> bool {
    false
}
