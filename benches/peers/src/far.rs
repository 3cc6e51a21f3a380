//! The far side: a thread or a process that answers.
//!
//! `near` starts it and sends it commands through a pipe; between commands it
//! sleeps in `read`, so that several far sides can own the same CPU in turn.
//! End of file on the pipe is the order to stop, hence a parent that was
//! killed leaves nothing behind. It never measures anything.

use std::env::current_exe;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::process::{Child, Command as Program, Stdio};
use std::sync::atomic::Ordering::Release;
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::cpus::pin;
use crate::fault::Fault;
use crate::floor;
use crate::link::Link;
use crate::wait::{LIMIT, until};
use crate::words::{Word, Words};

/// Between two looks at a process that is about to end. Nothing is measured then.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What the far side shall do `count` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Answer the bare word.
    Floor,
    /// Answer messages.
    Echo,
    /// Take messages, answer none, and say when all are there.
    Drain,
}

impl Command {
    fn encode(self, count: u64) -> [u8; 9] {
        let mut bytes = [0; 9];
        bytes[0] = self as u8;
        bytes[1..].copy_from_slice(&count.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; 9]) -> Result<(Self, u64), Fault> {
        let [kind, count @ ..] = bytes;
        let command = [Self::Floor, Self::Echo, Self::Drain]
            .into_iter()
            .find(|command| *command as u8 == kind)
            .ok_or(Fault::Refused {
                doing: "reading a command",
                why: format!("there is no command {kind}"),
            })?;
        Ok((command, u64::from_le_bytes(count)))
    }
}

/// What the far side writes into `Ready` when it is there; one more for each command.
pub(crate) const FIRST: u64 = 1;

/// Obeys until the pipe ends.
pub(crate) fn serve<L: Link>(
    mut commands: impl Read,
    words: &Words,
    link: &mut L,
) -> Result<(), Fault> {
    let (mut taken, mut turn, mut next) = (FIRST, 0, 0);
    words.word(Word::Ready).store(taken, Release);
    let mut record = [0; 9];
    loop {
        match commands.read_exact(&mut record) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(Fault::doing("reading a command")(error)),
        }
        let (command, count) = Command::decode(record)?;
        taken += 1;
        words.word(Word::Ready).store(taken, Release);
        match command {
            Command::Floor => {
                floor::pong(words, turn, count)?;
                turn += count;
            }
            Command::Echo => {
                echo(link, next, count)?;
                next += count;
            }
            Command::Drain => {
                drain(link, next, count)?;
                next += count;
                words.word(Word::Done).store(taken, Release);
            }
        }
    }
}

#[inline(never)]
fn echo<L: Link>(link: &mut L, first: u64, count: u64) -> Result<(), Fault> {
    for number in first..first + count {
        until(|| link.echo(number))?;
    }
    Ok(())
}

#[inline(never)]
fn drain<L: Link>(link: &mut L, first: u64, count: u64) -> Result<(), Fault> {
    let (mut next, end) = (first, first + count);
    while next < end {
        until(|| {
            let taken = link.receive_some(next, end - next)?;
            next += taken;
            Ok(taken > 0)
        })?;
    }
    Ok(())
}

/// A running far side, as the near side holds it. Stops when dropped.
#[derive(Debug)]
pub(crate) struct Far {
    commands: Option<PipeWriter>,
    body: Option<Body>,
}

#[derive(Debug)]
enum Body {
    Thread(JoinHandle<Result<(), Fault>>),
    Process(Child),
}

impl Far {
    /// A thread of this process, pinned to `cpu`.
    pub(crate) fn thread<L: Link + Send + 'static>(
        cpu: usize,
        words: Words,
        mut link: L,
    ) -> Result<Self, Fault> {
        let (reader, commands) = command_pipe()?;
        let body = Builder::new()
            .name("far".into())
            .spawn(move || {
                pin(cpu)?;
                serve(reader, &words, &mut link)
            })
            .map_err(Fault::doing("starting the far thread"))?;
        Ok(Self {
            commands: Some(commands),
            body: Some(Body::Thread(body)),
        })
    }

    /// This program once more, told by `arguments` what to be.
    pub(crate) fn process(arguments: &[String]) -> Result<Self, Fault> {
        let (reader, commands) = command_pipe()?;
        let body = current_exe()
            .and_then(|program| {
                Program::new(program)
                    .args(arguments)
                    .stdin(Stdio::from(reader))
                    .stdout(Stdio::null())
                    .spawn()
            })
            .map_err(Fault::doing("starting the far process"))?;
        Ok(Self {
            commands: Some(commands),
            body: Some(Body::Process(body)),
        })
    }

    /// Wakes the far side with something to do.
    pub(crate) fn command(&mut self, command: Command, count: u64) -> Result<(), Fault> {
        match &mut self.commands {
            Some(pipe) => pipe
                .write_all(&command.encode(count))
                .map_err(Fault::doing("commanding the far side")),
            None => Err(Fault::Far("it was stopped before".into())),
        }
    }

    /// Whether it has ended, unasked.
    pub(crate) fn ended(&mut self) -> bool {
        match &mut self.body {
            None => true,
            Some(Body::Thread(body)) => body.is_finished(),
            Some(Body::Process(body)) => !matches!(body.try_wait(), Ok(None)),
        }
    }

    /// Stops it and says why it ended.
    pub(crate) fn stop(&mut self) -> Result<(), Fault> {
        self.commands = None;
        match self.body.take() {
            None => Ok(()),
            Some(Body::Thread(body)) => body
                .join()
                .unwrap_or_else(|_| Err(Fault::Far("it panicked".into()))),
            Some(Body::Process(body)) => reap(body),
        }
    }
}

/// Waits for a process that was told to end, and ends it if it does not obey.
fn reap(mut body: Child) -> Result<(), Fault> {
    // A far side that still spins gives up by itself before this.
    let patience = LIMIT * 2;
    let since = Instant::now();
    let status = loop {
        let ended = body
            .try_wait()
            .map_err(Fault::doing("waiting for the far process"))?;
        match ended {
            Some(status) => break status,
            None if since.elapsed() < patience => sleep(LOOK_AGAIN),
            None => {
                // If it has just ended by itself there is nothing to kill.
                let _ = body.kill();
                let _ = body.wait();
                return Err(Fault::Far("it did not obey and was killed".into()));
            }
        }
    };
    if status.success() {
        Ok(())
    } else {
        Err(Fault::Far(status.to_string()))
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // Whoever wants to know why it ended has called `stop` before.
        let _ = self.stop();
    }
}

fn command_pipe() -> Result<(PipeReader, PipeWriter), Fault> {
    pipe().map_err(Fault::doing("making the command pipe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_survives_the_pipe() {
        for command in [Command::Floor, Command::Echo, Command::Drain] {
            let read = Command::decode(command.encode(u64::MAX - 3)).expect("known");
            assert_eq!(read, (command, u64::MAX - 3));
        }
        assert!(Command::decode([9; 9]).is_err());
    }
}
