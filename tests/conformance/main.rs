//! What every device does, whatever carries its packets: one suite, instantiated for each. And what one carrier does in
//! circumstances that need a network of its own.
//!
//! A carrier is a function that makes a [`Pair`](suite::Pair) of devices that reach each other, or says why it cannot here.

mod carriers;
mod links;
#[path = "../support/netns.rs"]
mod netns;
mod queues;
mod suite;

/// The suite for one carrier.
macro_rules! conforms {
    ($name:ident: $($case:ident)*) => {
        mod $name {
            $(#[test]
            fn $case() {
                match crate::carriers::$name() {
                    Ok(mut pair) => crate::suite::$case(&mut pair),
                    Err(reason) => eprintln!("skipped: {reason}"),
                }
            })*
        }
    };
}

macro_rules! all_conform {
    ($($name:ident)*) => {
        $(conforms! { $name:
            a_burst_arrives_whole_and_in_order
            every_length_arrives
            a_packet_may_become_shorter_while_it_is_written
            what_is_too_long_is_refused_and_nothing_else_happens
            a_full_ring_says_so_and_drains
            a_receiver_takes_no_more_than_it_asked_for
            nothing_arrives_twice_and_counts_add_up
            what_overruns_a_receiver_is_counted
            who_has_sent_can_be_answered
            idle_devices_do_nothing
            a_status_says_what_it_is
        })*
    };
}

all_conform! {
    local udp_lo udp_lo_ring udp_veth udp_veth_ring
    xdp_generic xdp_native xdp_to_udp udp_to_xdp
}
