//! Promises that the types make: what must not compile, does not.

use static_assertions::assert_not_impl_any;
use tightbeam::{Endpoint, Frame, Frozen, Message, Received, Reply};

// All of them belong to the endpoint's thread.
assert_not_impl_any!(Endpoint<()>: Send, Sync);
assert_not_impl_any!(Message<'static>: Send, Sync);
assert_not_impl_any!(Reply<'static>: Send, Sync);
assert_not_impl_any!(Frame: Send, Sync);
assert_not_impl_any!(Frozen: Send, Sync);
assert_not_impl_any!(Received: Send, Sync);

#[test]
fn what_must_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
