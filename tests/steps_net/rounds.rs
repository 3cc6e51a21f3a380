//! One victim: how it comes to a point of its operation, what happens to it there, and what the survivor must see then.

use crate::ground::Ground;
use crate::operation::{
    ATTEMPTED, BEFORE, DONE, HANDLED, Operation, PACKETS, PREPARED, PUBLISHED, SHORT, STAGE, TOLD,
    TOLD_BEFORE, TOLD_PACKETS, VERIFIED,
};
use crate::ptrace::{Resume, Stop, Task, Traced};
use crate::start;
use crate::support::{Looks, patiently};
use crate::survivor::{Checked, Survivor, check};
use crate::victim::{accounted_packets, sent_packets};
use crate::walk::{self, Company, Seen, Walker, Way};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
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
    wakes: Option<&'a std::path::Path>,
    wrong: Checked,
}

impl Watching<'_> {
    fn poll(&mut self) {
        if self.wrong.is_ok() {
            self.wrong = self.survivor.poll().map(drop);
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
            self.poll();
        }
        false
    }
}

/// Beside a victim that accepts: the survivor opens a channel on a thread of its own.
struct Opening<'a> {
    survivor_is_done: &'a AtomicBool,
    files: &'a std::path::Path,
    victim: Pid,
    stage: &'a dyn Fn() -> u64,
    /// The victim waits for somebody who has given up: it was ended.
    in_vain: bool,
}

impl Company for Opening<'_> {
    fn look(&mut self) -> Seen {
        match (self.stage)() >= DONE {
            true => Seen::Over,
            false => Seen::Nothing,
        }
    }

    fn acts(&self) -> bool {
        true
    }

    fn meanwhile(&mut self) -> bool {
        // Acquire: pairs with the release in `beside_opening`.
        let done = self.survivor_is_done.load(Ordering::Acquire);
        if done && !self.in_vain && walk::asleep(self.files) {
            self.in_vain = true;
            // It has gone another way, on which nothing stops it.
            let _ = kill_process(self.victim, Signal::KILL);
        }
        false
    }
}

/// All points of an operation.
pub(crate) enum Path {
    /// After each instruction.
    Instructions(Way),
    /// Before and after each kernel call, so many points: an opening has millions of instructions, most of which make memory, and what
    /// others see of it is its kernel calls.
    Calls(u64),
}

impl Path {
    pub(crate) fn points(&self) -> u64 {
        match self {
            Path::Instructions(way) => way.instructions(),
            Path::Calls(points) => *points,
        }
    }
}

/// How far a victim has come.
pub(crate) enum Walked {
    /// Through the whole operation.
    Through(Path),
    /// To a point, or on another way to somewhere else.
    To(bool),
}

/// What is wrong with the machinery.
fn no(error: impl Display) -> String {
    error.to_string()
}

/// One victim.
pub(crate) struct Round<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) operation: Operation,
    pub(crate) survivor: &'a mut Survivor,
    /// The survivor polls after each instruction.
    pub(crate) polls: bool,
}

impl Round<'_> {
    /// Walks the victim to a point, or through the whole operation, and there it meets its fate.
    pub(crate) fn go_through(&mut self, to: Option<(&Path, u64)>, fate: Fate) -> Checked<Walked> {
        if self.operation == Operation::Accept {
            return self.beside_opening(to, fate);
        }
        let traced = self.prepare()?;
        let files = PathBuf::from(format!("/proc/{}", traced.child.id()));
        let mut company = Watching {
            survivor: self.survivor,
            polls: self.polls,
            wakes: self.operation.sleeps().then_some(&files),
            wrong: Ok(()),
        };
        let way = walk(self.operation, (traced.task, &files), to, &mut company)?;
        company.wrong?;
        self.survivor.audit()?;
        match fate {
            Fate::Killed => self.kill(traced)?,
            Fate::Stopped => self.stop_and_continue(traced)?,
        }
        Ok(way)
    }

    /// Starts the victim and lets it come to its mark.
    fn prepare(&mut self) -> Checked<Traced> {
        let survivor = &mut *self.survivor;
        let mut command = start(self.operation.name(), &survivor.place, self.ground);
        let traced = Traced::start(&mut command).map_err(no)?;
        traced.task.resume(Resume::Run, 0).map_err(no)?;
        if self.operation != Operation::Open {
            survivor.until("the victim connects", Survivor::is_open)?;
            survivor.until("what comes first", |s| s.delivered() == BEFORE)?;
            for _ in 0..TOLD_BEFORE {
                let len = self.operation.len_before();
                check(survivor.tell(len)?, || "no room".into())?;
                survivor.poll()?;
            }
            survivor.ledger.wait_for(HANDLED, TOLD_BEFORE);
            if let Some(len) = self.operation.awaits() {
                check(survivor.tell(len)?, || "no room".into())?;
            }
            if self.operation == Operation::Reply {
                survivor.ask()?;
            }
            survivor.poll()?;
            survivor.ledger.write(PREPARED, 1);
        }
        marked(&traced)?;
        Ok(traced)
    }

    fn kill(&mut self, mut traced: Traced) -> Checked {
        traced.child.kill().map_err(no)?;
        // What the survivor does next it may do before it could know.
        self.survivor.ask_third_party()?;
        self.survivor.tell(SHORT)?;
        self.survivor.audit()?;
        drop(traced);
        self.after_death()
    }

    fn after_death(&mut self) -> Checked {
        // What lies in a ring of AF_XDP goes with the process.
        self.survivor.bury(self.ground.name == "udp")?;
        self.survivor.ask_the_dead()?;
        self.survivor.ask_third_party()?;
        self.survivor.audit()?;
        let told = self.survivor.has_closed();
        check(!told || self.operation == Operation::Close, || {
            "closed, though nobody closed it".into()
        })
    }

    /// Stops the victim, and looks whether anybody else is stopped by that; then lets it go on to its end.
    fn stop_and_continue(&mut self, mut traced: Traced) -> Checked {
        let process = stop(&traced)?;
        let survivor = &mut *self.survivor;
        survivor.ask_third_party()?;
        survivor.poll()?;
        let closed = survivor.has_closed() && self.operation != Operation::Close;
        check(!closed, || "an end, but it is only stopped".into())?;
        survivor.tell(SHORT)?;
        survivor.audit()?;
        kill_process(process, Signal::CONT).map_err(no)?;
        if self.operation == Operation::Close {
            survivor.until("the victim closes", Survivor::has_closed)?;
        } else {
            see_off(survivor)?;
        }
        let status = traced.child.wait().map_err(no)?;
        check(status.success(), || format!("the victim: {status}"))?;
        self.after_clean_end()
    }

    fn after_clean_end(&mut self) -> Checked {
        let wanted = match self.operation {
            Operation::Close => DONE,
            _ => VERIFIED,
        };
        let stage = self.survivor.ledger.read(STAGE);
        check(stage == wanted, || "the victim gave up".into())?;
        self.survivor.bury(true)?;
        self.survivor.ask_third_party()
    }

    /// The same for a victim that accepts: its survivor waits for it, and another thread walks it.
    fn beside_opening(&mut self, to: Option<(&Path, u64)>, fate: Fate) -> Checked<Walked> {
        let (ground, survivor) = (self.ground, &mut *self.survivor);
        let place = survivor.place.clone();
        let [done, gave_up] = &[const { AtomicBool::new(false) }; 2];
        let (ready, go) = mpsc::channel();
        let (way, opened, seen_off) = std::thread::scope(|scope| {
            let walker = scope.spawn(move || {
                let mut command = start(Operation::Accept.name(), &place, ground);
                let ledger = crate::support::Ledger::of(&place);
                let mut traced = Traced::start(&mut command).map_err(no)?;
                traced.task.resume(Resume::Run, 0).map_err(no)?;
                marked(&traced)?;
                let _ = ready.send(());
                let files = PathBuf::from(format!("/proc/{}", traced.child.id()));
                let mut company = Opening {
                    survivor_is_done: done,
                    files: &files,
                    victim: Pid::from_child(&traced.child),
                    stage: &|| ledger.read(STAGE),
                    in_vain: false,
                };
                let way = match walk(Operation::Accept, (traced.task, &files), to, &mut company) {
                    Err(_) if company.in_vain => return Ok((Walked::To(false), None)),
                    walked => walked?,
                };
                if fate == Fate::Killed {
                    drop(traced);
                    return Ok((way, None));
                }
                let process = stop(&traced)?;
                kill_process(process, Signal::CONT).map_err(no)?;
                // Acquire: pairs with the release below.
                patiently(|| done.load(Ordering::Acquire).then_some(()));
                if gave_up.load(Ordering::Relaxed) {
                    return Ok((way, None));
                }
                // It is killed when this thread ends.
                Checked::Ok((way, Some(traced.child.wait().map_err(no)?)))
            });
            // If nobody is ready the walker says why.
            let opened = go.recv().map(|()| survivor.open(&ground.victim));
            gave_up.store(!matches!(opened, Ok(Ok(()))), Ordering::Relaxed);
            // Release: pairs with the acquire in `Opening::meanwhile` and above.
            done.store(true, Ordering::Release);
            let seen_off = match (fate, &opened) {
                (Fate::Stopped, Ok(Ok(()))) => see_off(survivor),
                _ => Ok(()),
            };
            (walker.join().expect("no panic"), opened, seen_off)
        });
        let (way, status) = way?;
        match opened {
            Ok(Ok(())) => {}
            // It has died too early for an answer, or was walked for too long.
            Ok(Err(OpenError::TimedOut { .. })) if to.is_some() => {
                self.survivor.bury(false)?;
                self.survivor.ask_third_party()?;
                return Ok(way);
            }
            Ok(Err(other)) => return Err(format!("opening: {other}")),
            Err(_) => return Err("the victim has not come to its mark".into()),
        }
        seen_off?;
        match status {
            None => self.after_death()?,
            Some(status) => {
                check(status.success(), || format!("the victim: {status}"))?;
                self.after_clean_end()?;
            }
        }
        Ok(way)
    }
}

/// Lets the victim say its last, and compares the books: what was sent has come, or is counted.
fn see_off(survivor: &mut Survivor) -> Checked {
    survivor.until("the victim is there", Survivor::is_open)?;
    survivor.ask_for_the_dead()?;
    survivor.ledger.write(TOLD, survivor.told() + 1);
    survivor.until("the victim has said its last", |s| {
        s.ledger.read(PACKETS) > 0
    })?;
    let packets = survivor.ledger.read(PACKETS) - 1;
    let words = [ATTEMPTED, PUBLISHED].map(|word| survivor.ledger.read(word));
    let all = |s: &Survivor| {
        let packets_are_here = |status| accounted_packets(&status) == packets;
        words == [s.delivered(); 2] && s.status().is_ok_and(packets_are_here)
    };
    survivor.until("its last has come", all)?;
    let status = survivor.status()?;
    let lossless = status.count("lost") == Some(0);
    check(lossless, || format!("{status:?}"))?;
    survivor
        .ledger
        .write(TOLD_PACKETS, sent_packets(&status) + 1);
    survivor.until("the victim closes", Survivor::has_closed)
}

/// Walks to a point; without one to the end, and notes the way.
fn walk(
    operation: Operation,
    (task, files): (Task, &std::path::Path),
    to: Option<(&Path, u64)>,
    company: &mut dyn Company,
) -> Checked<Walked> {
    if operation.is_walked_by_calls() {
        return walk_calls(task, to.map(|(_, point)| point), company).map_err(no);
    }
    let mut walker = Walker {
        task,
        files,
        company,
    };
    match to {
        Some((Path::Instructions(way), point)) => walker.walk(way, point).map(Walked::To),
        _ => {
            let measured = walker.measure();
            measured.map(|way| Walked::Through(Path::Instructions(way)))
        }
    }
    .map_err(no)
}

/// The same from kernel call to kernel call, and some instructions further.
fn walk_calls(task: Task, to: Option<u64>, company: &mut dyn Company) -> io::Result<Walked> {
    /// Of each few points one lies behind as many instructions more.
    const FURTHER: u64 = 7;
    let mut stops = 0;
    while to.is_none_or(|to| stops < to) {
        go(task, Resume::Call, company)?;
        stops += 1;
        if company.look() == Seen::Over {
            return Ok(match to {
                None => Walked::Through(Path::Calls(stops)),
                Some(to) => Walked::To(stops == to),
            });
        }
    }
    for _ in 0..stops % FURTHER {
        go(task, Resume::Step, company)?;
    }
    Ok(Walked::To(true))
}

/// Goes on, and waits for the next stop.
fn go(task: Task, how: Resume, company: &mut dyn Company) -> io::Result<()> {
    task.resume(how, 0)?;
    let mut looks = Looks::new();
    loop {
        match task.try_wait()? {
            Some(Stop::Signal(libc::SIGTRAP)) => return Ok(()),
            Some(other) => return Err(io::Error::other(format!("it stops by {other:?}"))),
            None => drop(company.meanwhile()),
        }
        looks.another();
    }
}

/// Waits until the victim has come to its mark.
fn marked(traced: &Traced) -> Checked {
    match traced.task.wait().map_err(no)? {
        Stop::Signal(libc::SIGSTOP) => Ok(()),
        other => Err(format!("the victim does not come to its mark: {other:?}")),
    }
}

/// Gives up control of a victim, so that it is stopped before another instruction of its own.
fn stop(traced: &Traced) -> Checked<Pid> {
    let process = Pid::from_child(&traced.child);
    kill_process(process, Signal::STOP).map_err(no)?;
    traced.task.release(0).map_err(no)?;
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED;
    let options = options | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let id = WaitId::Pid(process);
    let status = patiently(|| waitid(id.clone(), options).expect("our own child"));
    check(status.stopped(), || format!("not stopped: {status:?}"))?;
    Ok(process)
}
