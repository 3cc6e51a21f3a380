//! Steps a child through marked stretches of its code, one instruction at a time (`ptrace`), and says what it went through.
//!
//! It knows breakpoints and registers; what they mean is `subject.rs`.

use crate::ptrace::{Resume, Stop, Traced as Child};
use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};
use libc::user_regs_struct as Registers;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::Command;

/// No x86 instruction is longer.
const LONGEST: usize = 15;
/// What the library calls its segments, as the kernel's list of mappings shows it.
const SEGMENT: &str = "/memfd:tightbeam ";

/// One executed instruction.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) instruction: Instruction,
    /// Whether it read 8 bytes of a segment, as a header load does.
    pub(crate) reads_segment: bool,
    /// Whether it wrote to a segment.
    pub(crate) writes_segment: bool,
}

/// A marked stretch as it was executed.
pub(crate) struct Stretch {
    pub(crate) case: u64,
    pub(crate) steps: Vec<Step>,
    /// The step that is the first instruction of the handler.
    pub(crate) handler: Option<usize>,
}

/// A child that is stopped whenever a method returns; killed with the tracer.
pub(crate) struct Traced {
    child: Child,
    memory: File,
    segments: Vec<Range<u64>>,
    decoded: HashMap<u64, Instruction>,
    info: InstructionInfoFactory,
}

impl Traced {
    /// Starts a command under this thread's control; it has not executed anything yet.
    pub(crate) fn start(command: &mut Command) -> io::Result<Traced> {
        let child = Child::start(command)?;
        let memory = File::open(format!("/proc/{}/mem", child.child.id()))?;
        Ok(Traced {
            child,
            memory,
            segments: Vec::new(),
            decoded: HashMap::new(),
            info: InstructionInfoFactory::new(),
        })
    }

    /// Lets it run to the next mark, and steps through what follows. `None` once it has ended well.
    pub(crate) fn next(&mut self) -> io::Result<Option<Stretch>> {
        let mut signal = 0;
        loop {
            self.child.task.resume(Resume::Run, signal)?;
            match self.wait()? {
                None => return Ok(None),
                Some(libc::SIGTRAP) => return self.stretch().map(Some),
                Some(other) => signal = other,
            }
        }
    }

    fn stretch(&mut self) -> io::Result<Stretch> {
        let marked = self.child.task.registers()?;
        let (end, handler) = (marked.rsi, marked.rdx);
        let mut stretch = Stretch {
            case: marked.rdi,
            steps: Vec::new(),
            handler: None,
        };
        self.find_segments()?;
        // Out of the mark itself first.
        while self.step()?.0.mnemonic() != Mnemonic::Ret {}
        loop {
            let at = self.child.task.registers()?.rip;
            if at == end {
                return Ok(stretch);
            }
            if at == handler {
                if stretch.handler.is_some() {
                    return Err(io::Error::other("the handler ran twice"));
                }
                stretch.handler = Some(stretch.steps.len());
            }
            let (instruction, before) = self.step()?;
            let step = self.look(instruction, &before);
            stretch.steps.push(step);
        }
    }

    /// Executes one instruction; which it was, and the registers before it.
    fn step(&mut self) -> io::Result<(Instruction, Registers)> {
        let registers = self.child.task.registers()?;
        let instruction = self.decode(registers.rip)?;
        let mut signal = 0;
        loop {
            self.child.task.resume(Resume::Step, signal)?;
            match self.wait()? {
                Some(libc::SIGTRAP) => return Ok((instruction, registers)),
                Some(other) => signal = other,
                None => return Err(io::Error::other("it ended between two marks")),
            }
        }
    }

    /// What an instruction that is about to be executed touches.
    fn look(&mut self, instruction: Instruction, registers: &Registers) -> Step {
        let mut step = Step {
            instruction,
            reads_segment: false,
            writes_segment: false,
        };
        for used in self.info.info(&instruction).used_memory() {
            let address = used.virtual_address(0, |register, _, _| value(registers, register));
            let within = address.is_some_and(|a| self.segments.iter().any(|s| s.contains(&a)));
            let (reads, writes) = match used.access() {
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write | OpAccess::CondWrite => (false, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
                _ => (false, false),
            };
            step.reads_segment |= within && reads && used.memory_size().size() == 8;
            step.writes_segment |= within && writes;
        }
        step
    }

    fn decode(&mut self, address: u64) -> io::Result<Instruction> {
        if let Some(known) = self.decoded.get(&address) {
            return Ok(*known);
        }
        let mut bytes = [0; LONGEST];
        let read = self.memory.read_at(&mut bytes, address)?;
        let mut decoder = Decoder::with_ip(64, &bytes[..read], address, DecoderOptions::NONE);
        let instruction = decoder.decode();
        self.decoded.insert(address, instruction);
        Ok(instruction)
    }

    fn find_segments(&mut self) -> io::Result<()> {
        if self.segments.is_empty() {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.child.id()))?;
            self.segments = maps.lines().filter_map(segment).collect();
        }
        match self.segments.is_empty() {
            true => Err(io::Error::other("it has mapped no segment")),
            false => Ok(()),
        }
    }

    /// Waits until it stops, and says by which signal; `None` if it has ended well.
    fn wait(&mut self) -> io::Result<Option<i32>> {
        match self.child.task.wait()? {
            Stop::Signal(signal) => Ok(Some(signal)),
            Stop::Ended(status) if status.exit_status() == Some(0) => Ok(None),
            other => Err(io::Error::other(format!("it failed: {other:?}"))),
        }
    }
}

/// The addresses of a mapping, if it is of a segment.
fn segment(line: &str) -> Option<Range<u64>> {
    let is_segment = line.contains(SEGMENT) || line.ends_with(SEGMENT.trim_end());
    let (from, rest) = line.split_once('-').filter(|_| is_segment)?;
    let (to, _) = rest.split_once(' ')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(number(from)?..number(to)?)
}

/// What a register holds that an address is made of; of a segment register, its base.
fn value(registers: &Registers, register: Register) -> Option<u64> {
    Some(match register {
        Register::RAX => registers.rax,
        Register::RBX => registers.rbx,
        Register::RCX => registers.rcx,
        Register::RDX => registers.rdx,
        Register::RSI => registers.rsi,
        Register::RDI => registers.rdi,
        Register::RBP => registers.rbp,
        Register::RSP => registers.rsp,
        Register::R8 => registers.r8,
        Register::R9 => registers.r9,
        Register::R10 => registers.r10,
        Register::R11 => registers.r11,
        Register::R12 => registers.r12,
        Register::R13 => registers.r13,
        Register::R14 => registers.r14,
        Register::R15 => registers.r15,
        Register::FS => registers.fs_base,
        Register::GS => registers.gs_base,
        Register::CS | Register::DS | Register::ES | Register::SS => 0,
        _ => return None,
    })
}
