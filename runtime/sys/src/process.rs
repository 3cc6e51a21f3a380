//! The ends of processes: of this one at once, and whether another one is on its way.

/// Whether this process is dying: it runs no code of its own any more, and has not come to its end yet. False of one that
/// lives, is gone, or cannot be looked at (`/proc` is not mounted, or hides it).
///
/// It is the first thread that is looked at: of a process whose first thread has ended by itself this is true while others go on.
pub fn is_dying(pid: i32) -> bool {
    // `PF_EXITING` of the kernel's `linux/sched.h`, in the ninth field of `/proc/PID/stat` (proc_pid_stat(5)).
    const EXITING: u32 = 4;
    let Ok(line) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The second field is a name in parentheses, which may have any of these in it.
    let after_name = line.rsplit_once(')').map_or("", |(_, rest)| rest);
    let flags = after_name.split_ascii_whitespace().nth(6);
    flags.is_some_and(|flags| flags.parse().is_ok_and(|flags: u32| flags & EXITING != 0))
}

/// Ends the process by one system call (`exit_group`): no destructors, no exit handlers, no flushing.
///
/// A program that has forbidden itself every other system call can end by this.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: bounds: the call takes a plain number, touches no memory of ours and does not return.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_dying_from_its_last_instruction_until_it_is_reaped() {
        assert!(!is_dying(std::process::id() as i32));
        assert!(!is_dying(i32::MAX));
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        assert!(!is_dying(pid));
        child.kill().unwrap();
        while !is_dying(pid) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_dying(pid));
    }
}
