//! A task under this thread's control (`ptrace`): run it, step it, stop it, let it go. What the stops mean is for others to say.
#![allow(dead_code, reason = "each program that includes it uses a part of it")]

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;

/// How a stopped task goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Resume {
    Run,
    /// For one instruction.
    Step,
    /// Until it enters the kernel for a call, or comes back from one.
    Call,
}

/// Why a task does not run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// It got this signal, which it has not acted on.
    Signal(i32),
    Ended(WaitStatus),
}

/// A thread of another process that this thread traces, by its id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task(Pid);

impl Task {
    pub(crate) fn id(self) -> Pid {
        self.0
    }

    /// Takes control of a running thread and stops it.
    pub(crate) fn seize(thread: Pid) -> io::Result<Task> {
        let task = Task(thread);
        task.request(libc::PTRACE_SEIZE as _, 0, OPTIONS as *mut _)?;
        task.interrupt()?;
        Ok(task)
    }

    /// Stops a seized thread wherever it is.
    pub(crate) fn interrupt(self) -> io::Result<Stop> {
        self.request(libc::PTRACE_INTERRUPT as _, 0, null_mut())?;
        self.wait()
    }

    /// Lets a stopped task go on, with a signal or 0.
    pub(crate) fn resume(self, how: Resume, signal: i32) -> io::Result<()> {
        let code = match how {
            Resume::Run => libc::PTRACE_CONT,
            Resume::Step => libc::PTRACE_SINGLESTEP,
            Resume::Call => libc::PTRACE_SYSCALL,
        };
        self.request(code as _, 0, number(signal))
    }

    /// Gives up control of a stopped task; it goes on, with a signal or 0.
    pub(crate) fn release(self, signal: i32) -> io::Result<()> {
        self.request(libc::PTRACE_DETACH as _, 0, number(signal))
    }

    /// Waits until it stops or ends.
    pub(crate) fn wait(self) -> io::Result<Stop> {
        let stop = self.look(WaitOptions::empty())?;
        stop.ok_or_else(|| io::Error::other("no such task"))
    }

    /// Whether it has stopped or ended.
    pub(crate) fn try_wait(self) -> io::Result<Option<Stop>> {
        self.look(WaitOptions::NOHANG)
    }

    fn look(self, options: WaitOptions) -> io::Result<Option<Stop>> {
        // Threads that are not the first of their process too.
        let options = options | WaitOptions::from_bits_retain(libc::__WALL as _);
        let Some((_, status)) = waitpid(Some(self.0), options)? else {
            return Ok(None);
        };
        Ok(Some(match status.stopping_signal() {
            Some(signal) => Stop::Signal(signal),
            None => Stop::Ended(status),
        }))
    }

    /// Has it stop before it executes what lies at one of these addresses; at 0 nothing does.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn break_at(self, places: [u64; 2]) -> io::Result<()> {
        const REGISTERS: usize = std::mem::offset_of!(libc::user, u_debugreg);
        let set = |register: usize, value: u64| {
            let place = REGISTERS + register * 8;
            self.request(libc::PTRACE_POKEUSER as _, place, value as usize as *mut _)
        };
        // Each is in use if its bit in the control register is set; they can be written while it is not.
        set(7, 0)?;
        set(0, places[0])?;
        set(1, places[1])?;
        set(
            7,
            u64::from(places[0] != 0) | u64::from(places[1] != 0) << 2,
        )
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn break_at(self, _: [u64; 2]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The address of its next instruction.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn at(self) -> io::Result<u64> {
        Ok(self.registers()?.rip)
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn at(self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Where the end of its stack is: at the beginning of a function the address to which that returns.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn stack(self) -> io::Result<u64> {
        Ok(self.registers()?.rsp)
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn stack(self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Where a repeated instruction (`rep movs`, `rep stos`) writes next.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn writes_to(self) -> io::Result<u64> {
        Ok(self.registers()?.rdi)
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn writes_to(self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn registers(self) -> io::Result<libc::user_regs_struct> {
        let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::uninit();
        let place = registers.as_mut_ptr().cast();
        self.request(libc::PTRACE_GETREGS as _, 0, place)?;
        // SAFETY: initialised: the kernel fills the whole structure when the request succeeds.
        Ok(unsafe { registers.assume_init() })
    }

    fn request(self, code: u32, address: usize, data: *mut libc::c_void) -> io::Result<()> {
        request(code, self.0.as_raw_nonzero().get(), address, data)
    }
}

/// A child process of which the first thread is traced; killed and reaped at the latest when dropped.
pub(crate) struct Traced {
    pub(crate) child: Child,
    pub(crate) task: Task,
    /// A seized thread of it, if that is still traced.
    pub(crate) other: Option<Task>,
}

impl Traced {
    /// Starts a command under this thread's control; it has not executed anything yet.
    pub(crate) fn start(command: &mut Command) -> io::Result<Traced> {
        let trace_me = || request(libc::PTRACE_TRACEME as _, 0, 0, null_mut());
        // SAFETY: between fork and exec the closure makes one system call, and neither allocates nor takes a lock.
        let command = unsafe { command.pre_exec(trace_me) };
        let child = command.stdin(Stdio::null()).spawn()?;
        let task = Task(Pid::from_child(&child));
        let traced = Traced {
            child,
            task,
            other: None,
        };
        match task.wait()? {
            Stop::Signal(libc::SIGTRAP) => {}
            other => return Err(io::Error::other(format!("no stop at its start: {other:?}"))),
        }
        task.request(libc::PTRACE_SETOPTIONS as _, 0, OPTIONS as *mut _)?;
        Ok(traced)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It has ended already, or something went wrong with it.
        let _ = self.child.kill();
        // It is not over before the tracer has seen the ends of all that it traces.
        if let Some(other) = self.other {
            while !matches!(other.wait(), Ok(Stop::Ended(_)) | Err(_)) {}
        }
        let _ = self.child.wait();
    }
}

/// Killed with its tracer.
const OPTIONS: usize = libc::PTRACE_O_EXITKILL as usize;

fn number(signal: i32) -> *mut libc::c_void {
    signal as usize as *mut _
}

fn request(code: u32, pid: i32, address: usize, data: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: bounds: of the requests made in this file one writes to memory of ours, PTRACE_GETREGS, and for it `data` is
    // a structure of that size; the others take a number for `data`.
    let result = unsafe { libc::ptrace(code as _, pid, address, data) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
