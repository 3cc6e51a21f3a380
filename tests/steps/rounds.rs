//! One victim: how it comes to a point of its operation, what happens to it there, and what the survivor must see then.

use crate::operation::{
    ATTEMPTED, DEPTH, DONE, HANDLED, Operation, PREPARED, PUBLISHED, QUEUED, SHORT, STAGE, TOLD,
    VERIFIED,
};
use crate::ptrace::{Resume, Stop, Task, Traced};
use crate::support::patiently;
use crate::survivor::{Checked, End, Survivor, check};
use crate::walk::{self, Company, Seen, Walker, Way};
use crate::{start, victim};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::fmt::Display;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;
use tightbeam::OpenError;

/// What happens to the victim at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Killed,
    /// Stopped, looked at, continued.
    Stopped,
}

/// The survivor while the victim is walked.
struct Watching<'a> {
    survivor: &'a mut Survivor,
    /// It polls after each instruction.
    polls: bool,
    /// It polls when the victim, whose directory of `proc` this is, waits for it.
    wakes: Option<&'a Path>,
    /// And before that it tells the victim something.
    tells: bool,
    wrong: Checked,
}

impl Watching<'_> {
    fn poll(&mut self) {
        if self.wrong.is_ok() {
            self.wrong = self.survivor.poll();
        }
    }
}

impl Company for Watching<'_> {
    fn look(&mut self) -> Seen {
        let before = self.survivor.delivered();
        if self.polls {
            self.poll();
        }
        if self.survivor.ledger.read(STAGE) >= DONE {
            Seen::Over
        } else if self.survivor.delivered() != before {
            Seen::Acted
        } else {
            Seen::Nothing
        }
    }

    fn acts(&self) -> bool {
        self.wakes.is_some()
    }

    fn meanwhile(&mut self) -> bool {
        if self.wakes.is_some_and(walk::asleep) {
            if std::mem::take(&mut self.tells) && self.wrong.is_ok() {
                self.wrong = self.survivor.tell(SHORT).map(drop);
            }
            // All that the ring holds: a part of it may not be room enough, and the next look is a nap away.
            (0..DEPTH).for_each(|_| self.poll());
        }
        false
    }
}

/// Beside a control thread: it goes on while the survivor opens a channel.
struct Opening<'a> {
    opened: &'a AtomicBool,
    thread: &'a Path,
}

impl Company for Opening<'_> {
    fn look(&mut self) -> Seen {
        Seen::Nothing
    }

    fn acts(&self) -> bool {
        true
    }

    /// It has nothing more to do if the other side has said its last and it sleeps all the same.
    fn meanwhile(&mut self) -> bool {
        // Acquire: pairs with the release in `beside_opening`; what was sent before that had woken the thread.
        self.opened.load(Ordering::Acquire) && walk::asleep(self.thread)
    }
}

/// How far a victim has come.
pub(crate) enum Walked {
    /// Through the whole operation.
    Through(Way),
    /// To a point, or on another way to somewhere else.
    To(bool),
}

/// So long a control thread that stands still waits for who opens.
const SOON: Duration = Duration::from_millis(2);

/// What is wrong with the machinery.
fn no(error: impl Display) -> String {
    error.to_string()
}

/// One victim.
pub(crate) struct Round<'a> {
    operation: Operation,
    survivor: &'a mut Survivor,
    /// The survivor polls after each instruction.
    pub(crate) polls: bool,
}

impl<'a> Round<'a> {
    pub(crate) fn new(operation: Operation, survivor: &'a mut Survivor) -> Self {
        survivor.begin();
        Round {
            operation,
            survivor,
            polls: operation.spins(),
        }
    }

    /// Walks the victim to a point, or through the whole operation, and there it meets its fate.
    pub(crate) fn go_through(&mut self, to: Option<(&Way, u64)>, fate: Fate) -> Checked<Walked> {
        if self.operation == Operation::Accept {
            return self.beside_opening(to, fate);
        }
        let traced = self.prepare()?;
        let files = PathBuf::from(format!("/proc/{}", traced.child.id()));
        let mut company = Watching {
            survivor: self.survivor,
            polls: self.polls,
            wakes: self.operation.sleeps().then_some(&files),
            tells: self.operation == Operation::Sleep,
            wrong: Ok(()),
        };
        let way = walk(traced.task, &files, to, &mut company)?;
        company.wrong?;
        if self.operation == Operation::Wake {
            self.survivor.wake_up()?;
        }
        // Nothing moves: what it was at is in its segment.
        self.survivor.audit()?;
        if self.operation == Operation::SendJump && to.is_none() {
            let jumps = has_jump(&traced).map_err(no)?;
            check(jumps, || "it has not jumped".into())?;
        }
        match fate {
            Fate::Killed => self.kill(traced)?,
            Fate::Stopped => self.stop_and_continue(traced)?,
        }
        Ok(way)
    }

    /// Starts the victim and lets it come to its mark.
    fn prepare(&mut self) -> Checked<Traced> {
        let command = &mut start(self.operation.name(), &self.survivor.address);
        let traced = Traced::start(command).map_err(no)?;
        self.survivor.expect(traced.child.id() as i32);
        traced.task.resume(Resume::Run, 0).map_err(no)?;
        if self.operation != Operation::Connect {
            self.exchange()?;
        }
        marked(&traced)?;
        Ok(traced)
    }

    /// What comes before the mark.
    fn exchange(&mut self) -> Checked {
        let survivor = &mut *self.survivor;
        match self.operation.listens() {
            true => {
                let address = victim::own_address(&survivor.address);
                patiently(|| survivor.open(&address).ok());
            }
            false => survivor.until("the victim connects", Survivor::is_open)?,
        }
        if self.operation == Operation::Adopt {
            survivor.ledger.write(PREPARED, 1);
            return Ok(());
        }
        let (said, _) = self.operation.said_before();
        survivor.until("what comes first", |s| s.delivered() == said)?;
        if self.operation == Operation::Unqueue {
            // What waits then, and what is handled so that there is room for it.
            let filled = said + self.operation.said_before().1;
            survivor.ledger.wait_for(ATTEMPTED, filled + QUEUED);
            survivor.until("the ring is empty", |s| s.delivered() == filled)?;
        }
        let (told, waiting) = self.operation.told_before();
        for _ in 0..told {
            let len = self.operation.len_before();
            check(survivor.tell(len)?, || "no room".into())?;
        }
        survivor.ledger.wait_for(HANDLED, told);
        if self.operation == Operation::Reply {
            survivor.ask()?;
        }
        for &len in waiting {
            // The room comes after the last one has been handled, when the victim ends its drain.
            patiently(|| match survivor.tell(len) {
                Ok(false) => None,
                told => Some(told),
            })?;
        }
        match self.operation {
            Operation::TakeTurn => survivor.tell_along_path()?,
            Operation::ReceivePublished => survivor.tell_both()?,
            Operation::HandOver | Operation::Answer => survivor.ask_a_worker()?,
            Operation::Wake => survivor.fall_asleep()?,
            _ => {}
        }
        survivor.ledger.write(PREPARED, 1);
        Ok(())
    }

    /// Kills the victim; what the survivor does next it may do before it knows.
    fn kill(&mut self, mut traced: Traced) -> Checked {
        traced.child.kill().map_err(no)?;
        let survivor = &mut *self.survivor;
        survivor.ask_third_party()?;
        match self.operation {
            Operation::Reply => survivor.ask_the_dead()?,
            _ => while survivor.tell(SHORT)? {},
        }
        survivor.audit()?;
        drop(traced);
        self.after_death()
    }

    fn after_death(&mut self) -> Checked {
        self.survivor.bury()?;
        self.survivor.ask_third_party()?;
        let closed = self.survivor.end().is_some_and(|end| end.closed);
        let done = self.survivor.ledger.read(STAGE) >= DONE;
        match self.operation.closes() {
            true => check(closed || !done, || "it had closed, but is dead".into()),
            false => check(!closed, || "closed, though nobody closed it".into()),
        }
    }

    /// Stops the victim, and looks whether anybody else is stopped by that; then lets it go on to its end.
    fn stop_and_continue(&mut self, mut traced: Traced) -> Checked {
        let process = stop(&traced, &[traced.task])?;
        let survivor = &mut *self.survivor;
        survivor.ask_third_party()?;
        survivor.poll()?;
        check(survivor.end().is_none() || self.operation.closes(), || {
            "an end, but it is only stopped".into()
        })?;
        // Into every slot that it may have given back too early.
        while survivor.tell(SHORT)? {}
        survivor.audit()?;
        survivor.ask_third_party()?;
        kill_process(process, Signal::CONT).map_err(no)?;
        self.see_off()?;
        let status = traced.child.wait().map_err(no)?;
        check(status.success(), || format!("the victim: {status}"))?;
        self.after_clean_end()
    }

    /// Lets the victim end well.
    fn see_off(&mut self) -> Checked {
        let survivor = &mut *self.survivor;
        survivor.ledger.write(TOLD, survivor.told() + 1);
        survivor.until("the victim closes", |s| s.end().is_some())
    }

    fn after_clean_end(&mut self) -> Checked {
        let survivor = &mut *self.survivor;
        survivor.bury()?;
        survivor.ask_third_party()?;
        let read = |word| survivor.ledger.read(word);
        let wanted = if self.operation.closes() {
            DONE
        } else {
            VERIFIED
        };
        check(read(STAGE) == wanted, || "the victim gave up".into())?;
        check(read(ATTEMPTED) == read(PUBLISHED), || {
            "not all was sent".into()
        })?;
        let closed = survivor.end().is_some_and(|end| end.closed);
        check(closed, || "dead, but it has closed".into())?;
        let late = survivor.end().map_or(0, End::late_answers);
        check(late == 1 || !self.operation.works(), || {
            format!("{late} answers of the worker")
        })
    }

    /// The same for the victim's control thread, which goes on only while the survivor waits for it: another thread walks it.
    fn beside_opening(&mut self, to: Option<(&Way, u64)>, fate: Fate) -> Checked<Walked> {
        let survivor = &mut *self.survivor;
        let mut command = start(self.operation.name(), &survivor.address);
        let address = victim::own_address(&survivor.address);
        let opened = &AtomicBool::new(false);
        let (ready, go) = mpsc::channel();
        let standing = &Mutex::new(false);
        let ((stands, stood), (seen, looked)) = (mpsc::channel(), mpsc::channel());
        let way = std::thread::scope(|scope| {
            let walker = scope.spawn(move || {
                let mut traced = Traced::start(&mut command).map_err(no)?;
                traced.task.resume(Resume::Run, 0).map_err(no)?;
                marked(&traced)?;
                let (control, thread) = control_thread(&traced).map_err(no)?;
                traced.other = Some(control);
                let _ = ready.send(());
                let mut company = Opening {
                    opened,
                    thread: &thread,
                };
                let way = walk(control, &thread, to, &mut company)?;
                // Who opens may wait for just this thread.
                *standing.lock().expect("no panic") = true;
                let _ = stands.send(());
                let _: Result<(), _> = looked.recv_timeout(SOON);
                *standing.lock().expect("no panic") = false;
                match fate {
                    Fate::Killed => drop(traced),
                    Fate::Stopped => pause(traced, control)?,
                }
                Checked::Ok(way)
            });
            // If nobody is ready the walker says why.
            let ready = go.recv().is_ok();
            let open = if ready {
                survivor.open(&address)
            } else {
                Ok(())
            };
            // Release: pairs with the acquire in `Opening::meanwhile`.
            opened.store(true, Ordering::Release);
            let checked = match stood.recv() {
                Ok(()) => survivor.beside(standing),
                // The walker says why.
                Err(_) => Ok(()),
            };
            let _ = seen.send(());
            let seen_off = match (fate, &open) {
                (Fate::Stopped, Ok(())) if ready => {
                    survivor.ledger.write(TOLD, survivor.told() + 1);
                    survivor.until("the victim closes", |s| s.end().is_some())
                }
                _ => Ok(()),
            };
            let way = walker.join().expect("no panic")?;
            checked?;
            seen_off?;
            match open {
                Ok(()) => Ok(way),
                Err(OpenError::HungUp | OpenError::NobodyListens { .. })
                    if fate == Fate::Killed =>
                {
                    Ok(way)
                }
                Err(other) => Err(format!("opening: {other}")),
            }
        })?;
        match fate {
            Fate::Killed => self.after_death()?,
            Fate::Stopped => self.after_clean_end()?,
        }
        Ok(way)
    }
}

/// Walks to a point of a way; without one to the end, and notes the way.
fn walk(
    task: Task,
    files: &Path,
    to: Option<(&Way, u64)>,
    company: &mut dyn Company,
) -> Checked<Walked> {
    let mut walker = Walker {
        task,
        files,
        company,
    };
    match to {
        Some((way, point)) => walker.walk(way, point).map(Walked::To),
        None => walker.measure().map(Walked::Through),
    }
    .map_err(no)
}

/// Waits until the victim has come to its mark.
fn marked(traced: &Traced) -> Checked {
    match traced.task.wait().map_err(no)? {
        Stop::Signal(libc::SIGSTOP) => Ok(()),
        other => Err(format!("the victim does not come to its mark: {other:?}")),
    }
}

/// Gives up control of tasks, so that their process is stopped before another instruction of theirs.
fn stop(traced: &Traced, tasks: &[Task]) -> Checked<Pid> {
    let process = Pid::from_child(&traced.child);
    kill_process(process, Signal::STOP).map_err(no)?;
    for task in tasks {
        task.release(0).map_err(no)?;
    }
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED;
    let options = options | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let id = WaitId::Pid(process);
    let status = patiently(|| waitid(id.clone(), options).expect("our own child"));
    check(status.stopped(), || format!("not stopped: {status:?}"))?;
    Ok(process)
}

/// The thread that accepts and watches, stopped, and where the kernel tells of it.
fn control_thread(traced: &Traced) -> std::io::Result<(Task, PathBuf)> {
    // It gives itself its name when it starts.
    let threads = PathBuf::from(format!("/proc/{}/task", traced.child.id()));
    let path = patiently(|| {
        let mut paths = std::fs::read_dir(&threads)
            .ok()?
            .flatten()
            .map(|t| t.path());
        paths.find(|path| {
            let name = std::fs::read_to_string(path.join("comm"));
            name.is_ok_and(|name| name.starts_with("tightbeam-contr"))
        })
    });
    let id = path
        .file_name()
        .and_then(|name| name.to_str()?.parse().ok());
    let id = id.and_then(Pid::from_raw).expect("a thread's number");
    Ok((Task::seize(id)?, path))
}

/// Stops a process of which two threads are traced for a while, then waits for its end.
fn pause(mut traced: Traced, control: Task) -> Checked {
    traced.other = None;
    let process = stop(&traced, &[control, traced.task])?;
    // Long enough for whoever opens to find nobody.
    std::thread::sleep(Duration::from_millis(1));
    kill_process(process, Signal::CONT).map_err(no)?;
    let status = traced.child.wait().map_err(no)?;
    check(status.success(), || format!("the victim: {status}"))
}

/// Whether there is a jump marker in a segment of the victim: kind 5 in the header of a slot, see `descriptor.rs`.
fn has_jump(traced: &Traced) -> std::io::Result<bool> {
    const RING: usize = 24;
    let of = |name| format!("/proc/{}/{name}", traced.child.id());
    let memory = std::fs::File::open(of("mem"))?;
    let maps = std::fs::read_to_string(of("maps"))?;
    for line in maps.lines().filter(|l| l.contains("/memfd:tightbeam")) {
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        let (range, _) = line.split_once(' ').expect("a mapping");
        let (from, to) = range.split_once('-').expect("a range");
        let mut bytes = vec![0; (number(to) - number(from)) as usize];
        memory.read_exact_at(&mut bytes, number(from))?;
        let mut slots = bytes.chunks(64).skip(RING);
        if slots.any(|slot| slot[0] != 0 && slot[1] & 7 == 5) {
            return Ok(true);
        }
    }
    Ok(false)
}
