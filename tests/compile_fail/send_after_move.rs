use tightbeam::{Endpoint, TypedMessage};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Order(u64);

impl TypedMessage for Order {
    const HANDLER: u16 = 1;
    type Reply = ();
}

fn main() {
    let mut client = Endpoint::connect("shm:/tmp/x.sock").unwrap();
    let order = Order(7);
    let _ = client.try_send_typed(order);
    println!("{}", order.0);
}
