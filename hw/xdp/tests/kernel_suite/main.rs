//! The cases of the kernel's own AF_XDP suite (`tools/testing/selftests/bpf`), by their names, over our layer: [`CASES`] says which test each is,
//! and which have nothing to be applied to.
//!
//! Each runs in CI, in generic and in native mode; with `TIGHTBEAM_LONG=1` those that repeat something repeat it ten times as often. The
//! kernel's third mode, zero-copy, needs a NIC.

mod bare;
mod counters;
mod parts;
mod programs;
mod shared;
#[path = "../support/mod.rs"]
mod support;
mod traffic;

/// Packets of a case, as many as the kernel's suite has.
const COUNT: u32 = 4096;
const PORT: u16 = 7000;

/// What a case of the kernel's suite is here.
enum Case {
    /// This test.
    Is(&'static str),
    /// Nothing, because of this.
    None(&'static str),
}

const ALIGNED: Case = Case::None("frames are aligned: the ledger knows one by its place");
const RINGS: Case = Case::None("veth has no rings of a NIC, whose sizes ethtool could set");

/// Every case of the kernel's suite.
const CASES: [(&str, Case); 36] = [
    ("SEND_RECEIVE", Case::Is("send_receive")),
    ("SEND_RECEIVE_2K_FRAME", Case::Is("send_receive")),
    (
        "SEND_RECEIVE_SINGLE_PKT",
        Case::Is("send_receive_single_pkt"),
    ),
    ("POLL_RX", Case::Is("poll_rx")),
    ("POLL_TX", Case::Is("poll_tx")),
    ("POLL_RXQ_FULL", Case::Is("poll_rxq_empty_and_txq_full")),
    ("POLL_TXQ_FULL", Case::Is("poll_rxq_empty_and_txq_full")),
    ("ALIGNED_INV_DESC", Case::Is("stat_tx_invalid")),
    (
        "ALIGNED_INV_DESC_2K_FRAME_SIZE",
        Case::Is("stat_tx_invalid"),
    ),
    ("UMEM_HEADROOM", Case::Is("umem_headroom")),
    ("BIDIRECTIONAL", Case::Is("bidirectional")),
    ("STAT_RX_DROPPED", Case::Is("stat_rx_dropped")),
    ("STAT_TX_INVALID", Case::Is("stat_tx_invalid")),
    ("STAT_RX_FULL", Case::Is("stat_rx_full")),
    ("STAT_FILL_EMPTY", Case::Is("stat_fill_empty")),
    (
        "XDP_PROG_CLEANUP",
        Case::Is("xdp_prog_cleanup_and_teardown"),
    ),
    ("TEARDOWN", Case::Is("xdp_prog_cleanup_and_teardown")),
    ("TX_QUEUE_CONSUMER", Case::Is("tx_queue_consumer")),
    ("XDP_DROP_HALF", Case::Is("xdp_drop_half")),
    ("XDP_SHARED_UMEM", Case::Is("xdp_shared_umem")),
    ("XDP_METADATA_COPY", Case::Is("xdp_metadata_copy")),
    (
        "XDP_METADATA_COPY_MULTI_BUFF",
        Case::Is("xdp_metadata_copy_multi_buff"),
    ),
    ("XDP_ADJUST_TAIL_SHRINK", Case::Is("xdp_adjust_tail_shrink")),
    (
        "XDP_ADJUST_TAIL_SHRINK_MULTI_BUFF",
        Case::Is("xdp_adjust_tail_shrink_multi_buff"),
    ),
    ("XDP_ADJUST_TAIL_GROW", Case::Is("xdp_adjust_tail_grow")),
    (
        "XDP_ADJUST_TAIL_GROW_MULTI_BUFF",
        Case::None("over veth the kernel grows no packet in several parts, in neither mode"),
    ),
    (
        "ALIGNED_INV_DESC_MULTI_BUFF",
        Case::Is("aligned_inv_desc_multi_buff"),
    ),
    ("TOO_MANY_FRAGS", Case::Is("too_many_frags")),
    (
        "SEND_RECEIVE_9K_PACKETS",
        Case::Is("send_receive_9k_packets"),
    ),
    ("SEND_RECEIVE_UNALIGNED", ALIGNED),
    ("UNALIGNED_INV_DESC", ALIGNED),
    ("UNALIGNED_INV_DESC_4001_FRAME_SIZE", ALIGNED),
    ("SEND_RECEIVE_UNALIGNED_9K_PACKETS", ALIGNED),
    ("UNALIGNED_INV_DESC_MULTI_BUFF", ALIGNED),
    ("HW_SW_MIN_RING_SIZE", RINGS),
    ("HW_SW_MAX_RING_SIZE", RINGS),
];

/// The cases that the kernel's own CI runs.
const KERNEL_CI: usize = 24;

#[test]
fn every_case_is_a_test_or_has_a_reason() {
    let files = [
        include_str!("counters.rs"),
        include_str!("parts.rs"),
        include_str!("programs.rs"),
        include_str!("shared.rs"),
        include_str!("traffic.rs"),
    ];
    let mut tests = 0;
    for (n, (name, case)) in CASES.iter().enumerate() {
        assert!(CASES[..n].iter().all(|(other, _)| other != name), "{name}");
        match case {
            Case::Is(test) => {
                let known = format!("#[test]\nfn {test}() {{\n    in_both_modes");
                let known = files.iter().any(|file| file.contains(&known));
                assert!(known, "{name}: {test} is no test in both modes");
                tests += 1;
            }
            Case::None(why) => println!("{name}: none, {why}"),
        }
    }
    assert!(tests >= KERNEL_CI, "{tests} are tests");
}
