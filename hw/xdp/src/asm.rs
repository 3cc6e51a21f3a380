//! An assembler of the few instructions that the steering program needs.
//!
//! Each method writes one instruction (a map's address takes two) and is called what it does. A jump names a [`Label`], which is put
//! where it shall lead; jumps lead forward only, as the kernel wants them of a program without loops.

use tightbeam_sys::bpf::Instruction;

/// A register of the machine: `R0` for results, `R1` to `R5` for arguments, of which a call leaves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Register {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
}

/// Bytes of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
}

/// A place in the program that jumps lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

// Classes, operations and sources of the instruction set, as the kernel's `linux/bpf_common.h` and `linux/bpf.h` number them.
const LOAD_IMMEDIATE: u8 = 0x18;
const LOAD_MEMORY: u8 = 0x61;
const JUMP: u8 = 0x05;
const ALU64: u8 = 0x07;
const WITH_REGISTER: u8 = 0x08;
const ADD: u8 = 0x00;
const OR: u8 = 0x40;
const AND: u8 = 0x50;
const SHIFT_LEFT: u8 = 0x60;
const SHIFT_RIGHT: u8 = 0x70;
const MOVE: u8 = 0xb0;
const IF_GREATER: u8 = 0x20;
const IF_NOT_EQUAL: u8 = 0x50;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// The source register of a map's address.
const PSEUDO_MAP: u8 = 1;

/// A program in the making.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    code: Vec<Instruction>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps, and where they lead.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    pub(crate) fn new() -> Assembler {
        Assembler::default()
    }

    fn write(&mut self, code: u8, to: Register, from: u8, offset: i16, constant: i32) {
        self.code.push(Instruction {
            code,
            registers: to as u8 | from << 4,
            offset,
            constant,
        });
    }

    /// `to = *(from + offset)`
    pub(crate) fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.write(LOAD_MEMORY | width as u8, to, from as u8, offset, 0);
    }

    /// `to = map`
    pub(crate) fn load_map(&mut self, to: Register, descriptor: i32) {
        self.write(LOAD_IMMEDIATE, to, PSEUDO_MAP, 0, descriptor);
        self.write(0, Register::R0, 0, 0, 0);
    }

    /// `to = from`
    pub(crate) fn copy(&mut self, to: Register, from: Register) {
        self.write(ALU64 | MOVE | WITH_REGISTER, to, from as u8, 0, 0);
    }

    /// `to = constant`
    pub(crate) fn set(&mut self, to: Register, constant: i32) {
        self.write(ALU64 | MOVE, to, 0, 0, constant);
    }

    /// `to += constant`
    pub(crate) fn add(&mut self, to: Register, constant: i32) {
        self.write(ALU64 | ADD, to, 0, 0, constant);
    }

    /// `to &= constant`
    pub(crate) fn and(&mut self, to: Register, constant: i32) {
        self.write(ALU64 | AND, to, 0, 0, constant);
    }

    /// `to |= from`
    pub(crate) fn or(&mut self, to: Register, from: Register) {
        self.write(ALU64 | OR | WITH_REGISTER, to, from as u8, 0, 0);
    }

    /// `to <<= bits`
    pub(crate) fn shift_left(&mut self, to: Register, bits: i32) {
        self.write(ALU64 | SHIFT_LEFT, to, 0, 0, bits);
    }

    /// `to >>= bits`
    pub(crate) fn shift_right(&mut self, to: Register, bits: i32) {
        self.write(ALU64 | SHIFT_RIGHT, to, 0, 0, bits);
    }

    /// A label, to be [`put`](Self::put) somewhere.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub(crate) fn put(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// `if a > b goto label`
    pub(crate) fn jump_if_greater(&mut self, a: Register, b: Register, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.write(JUMP | IF_GREATER | WITH_REGISTER, a, b as u8, 0, 0);
    }

    /// `if a != constant goto label`
    pub(crate) fn jump_if_not(&mut self, a: Register, constant: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.write(JUMP | IF_NOT_EQUAL, a, 0, 0, constant);
    }

    /// `r0 = helper(r1, r2, r3, r4, r5)`
    pub(crate) fn call(&mut self, helper: i32) {
        self.write(JUMP | CALL, Register::R0, 0, 0, helper);
    }

    /// `return r0`
    pub(crate) fn exit(&mut self) {
        self.write(JUMP | EXIT, Register::R0, 0, 0, 0);
    }

    /// The program, with all jumps led to their labels.
    ///
    /// # Panics
    ///
    /// If a label was put nowhere, or before a jump to it: a mistake in the program that calls this.
    pub(crate) fn finish(mut self) -> Vec<Instruction> {
        for &(from, label) in &self.jumps {
            let to = self.labels[label.0].expect("a label that was put nowhere");
            let distance = to.checked_sub(from + 1).expect("a jump backwards");
            self.code[from].offset = i16::try_from(distance).expect("a short program");
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::Register::{R0, R1, R2};
    use super::*;

    /// The bytes of `bpf_asm`'s notation, worked out by hand from the instruction set's tables.
    #[test]
    fn instructions_have_the_bits_that_the_kernel_wants() {
        let mut a = Assembler::new();
        let end = a.label();
        a.load(Width::Half, R2, R1, 12);
        a.jump_if_not(R2, 8, end);
        a.jump_if_greater(R1, R2, end);
        a.load_map(R1, 7);
        a.put(end);
        a.exit();
        let code = a.finish();
        let words: Vec<_> = code
            .iter()
            .map(|i| (i.code, i.registers, i.offset, i.constant))
            .collect();
        let wanted = [
            (0x69, 0x12, 12, 0),
            (0x55, 0x02, 3, 8),
            (0x2d, 0x21, 2, 0),
            (0x18, 0x11, 0, 7),
            (0x00, 0x00, 0, 0),
            (0x95, 0x00, 0, 0),
        ];
        assert_eq!(words, wanted);
    }

    #[test]
    #[should_panic(expected = "a jump backwards")]
    fn there_are_no_loops() {
        let mut a = Assembler::new();
        let start = a.label();
        a.put(start);
        a.jump_if_not(R0, 0, start);
        a.finish();
    }
}
