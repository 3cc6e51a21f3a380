//! An endpoint in a tokio program (feature `tokio`): waiting for messages, calls and events as futures.
//!
//! The endpoint stays on its thread, so its futures do too: `tokio::task::LocalSet`, or a runtime of one thread. All of them
//! may be dropped before they are ready; nothing is lost then but the answer of a call.

use crate::channel::{Called, ChannelId};
use crate::descriptor::ArmError;
use crate::neighbours::GIVE_WAY;
use crate::send::is_for_want_of_room;
use crate::{CallError, Endpoint, Event, SendError, Wait};
use futures_util::stream::{self, Stream};
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;
use std::time::Duration;
use tightbeam_segment::{Answer, TrySendError};
use tightbeam_sys::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

/// Messages handled at a time before others of the thread may run.
const BUDGET: usize = 64;
/// Looks before the endpoint sleeps, each of a microsecond or two: others of the thread wait meanwhile.
const LOOKS: u32 = 8;

impl<S, D> Endpoint<S, D> {
    /// Handles what arrives, and returns how many messages it were as soon as there were any; 0 if there is an
    /// [event](Self::next_event), or somebody has called [`Stopper::stop`](crate::Stopper::stop).
    ///
    /// Looks a few times before it sleeps, or once with [`Wait::Park`]. Makes no system call while messages
    /// keep coming.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O, or in another one than before.
    ///
    /// ```
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    /// # let address = format!("shm:{}/tightbeam-ready-{}.sock", std::env::temp_dir().display(), std::process::id());
    /// use tightbeam::{Endpoint, Handlers};
    ///
    /// let handlers = Handlers::new().on(1, |count: &mut u32, _, _| *count += 1);
    /// let mut server = Endpoint::<u32>::listen(&address, handlers)?;
    /// let mut client = Endpoint::connect(&address)?;
    /// client.try_send(1, b"hello")?;
    /// runtime.block_on(async {
    ///     while *server.state() == 0 {
    ///         server.ready().await?;
    ///     }
    ///     Ok::<(), tightbeam_endpoint::ArmError>(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn ready(&mut self) -> Result<usize, ArmError> {
        let mut looks = 0;
        loop {
            let handled = self.poll_spinning(BUDGET, self.spins());
            if handled > 0 || !self.events.is_empty() || std::mem::take(&mut self.stopping) {
                return Ok(handled);
            }
            looks += 1;
            if self.looked_enough(looks) {
                self.sleep(true).await?;
            }
        }
    }

    /// As [`ready`](Self::ready), for a call: events and wishes to stop are left alone.
    async fn progress(&mut self) -> Result<(), ArmError> {
        let mut looks = 0;
        loop {
            if self.poll_spinning(BUDGET, self.spins()) > 0 {
                return Ok(());
            }
            looks += 1;
            if self.looked_enough(looks) {
                return self.sleep(false).await;
            }
        }
    }

    /// Calls the peer's handler with this index over the endpoint's first channel, as [`call`](Self::call) does, and gives way to
    /// others of the thread until the reply comes.
    pub async fn call_async(&mut self, handler: u16, payload: &[u8]) -> Result<Vec<u8>, CallError> {
        let channel = self.first().ok_or(SendError::NoChannel);
        let channel = channel.map_err(CallError::NotSent)?;
        let within = self.deadline;
        self.call_to_async(channel, handler, payload, within).await
    }

    /// As [`call_to`](Self::call_to), and gives way to others of the thread until the reply comes.
    pub async fn call_to_async(
        &mut self,
        channel: ChannelId,
        handler: u16,
        payload: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let spins = self.spins();
        let found = self.channel(channel).ok_or(SendError::NoChannel);
        let found = found.map_err(CallError::NotSent)?;
        // Most replies come while nothing else is looked at, not even the clock.
        let called = found.call(handler, payload, spins);
        if let Called::Answered = called {
            return Ok(found.port.copied().to_vec());
        }
        let mut calling = Calling {
            endpoint: self,
            channel,
            waited: false,
        };
        let deadline = Instant::now().checked_add(within);
        calling.send(called, handler, payload, deadline).await?;
        calling.reply(handler, deadline).await
    }

    /// The endpoint's events, as they come. What arrives meanwhile is handled.
    pub fn events(&mut self) -> impl Stream<Item = Result<Event, ArmError>> + '_ {
        stream::try_unfold(self, |endpoint| async {
            loop {
                if let Some(event) = endpoint.next_event() {
                    return Ok(Some((event, endpoint)));
                }
                endpoint.ready().await?;
            }
        })
    }

    /// Whether it is time to sleep after so many looks. Gives way to a peer on this CPU before.
    #[cold]
    fn looked_enough(&mut self, looks: u32) -> bool {
        if looks == 1 {
            self.look_for_neighbours();
        }
        if looks <= GIVE_WAY && self.give_way(std::time::Instant::now()) {
            return false;
        }
        match self.wait {
            Wait::Park => true,
            _ => looks >= LOOKS || self.neighbours.near(),
        }
    }

    /// Until there is something to poll.
    async fn sleep(&mut self, for_events: bool) -> Result<(), ArmError> {
        let registered = match self.registered.take() {
            Some(registered) => registered,
            None => self.register()?,
        };
        let Some(sleeper) = self.arm_for(for_events)? else {
            self.registered = Some(registered);
            give_way_once().await;
            return Ok(());
        };
        // Whoever drops this future drops both; the next one registers again.
        if let Ok(mut ready) = registered.readable().await {
            ready.clear_ready();
        }
        drop(sleeper);
        self.registered = Some(registered);
        Ok(())
    }

    fn register(&mut self) -> Result<AsyncFd<OwnedFd>, ArmError> {
        let failed = |call, error: std::io::Error| ArmError {
            call,
            errno: Errno::from_io_error(&error).unwrap_or(Errno::INVAL),
        };
        let watcher = self.watch_connections()?;
        let descriptor = watcher.as_fd().try_clone_to_owned();
        let descriptor = descriptor.map_err(|error| failed("duplicate a descriptor", error))?;
        #[expect(
            deprecated,
            reason = "an `OwnedFd` stays open until it is dropped, which is all that the unsafe successor asks for"
        )]
        let registered = AsyncFd::with_interest(descriptor, Interest::READABLE);
        registered.map_err(|error| failed("watch the endpoint in tokio", error))
    }
}

/// Lets others of the thread run: who sees to it that there is always something to look at is not to keep them from it.
async fn give_way_once() {
    let mut given = false;
    poll_fn(|context| match std::mem::replace(&mut given, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

/// A call under way, which is given up when this is dropped.
struct Calling<'a, S, D> {
    endpoint: &'a mut Endpoint<S, D>,
    channel: ChannelId,
    /// Something was waited for before.
    waited: bool,
}

impl<S, D> Calling<'_, S, D> {
    async fn send(
        &mut self,
        mut called: Called,
        handler: u16,
        payload: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), CallError> {
        loop {
            let channel = self.endpoint.channel(self.channel);
            let channel = channel.ok_or(CallError::NotSent(SendError::NoChannel))?;
            match called {
                Called::NotSent(TrySendError::TooManyCalls) => {}
                Called::NotSent(error) if is_for_want_of_room(error) => channel.want_room(),
                Called::NotSent(error) => return Err(CallError::NotSent(error.into())),
                Called::Answered => {
                    channel.answer = Some(Answer::Reply);
                    return Ok(());
                }
                Called::Sent => return Ok(()),
            }
            if !self.wait(deadline).await? {
                return Err(CallError::NotSent(SendError::DeadlineExceeded));
            }
            let channel = self.endpoint.channel(self.channel);
            let channel = channel.ok_or(CallError::NotSent(SendError::NoChannel))?;
            called = channel.call(handler, payload, 0);
        }
    }

    async fn reply(
        &mut self,
        handler: u16,
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>, CallError> {
        loop {
            let channel = self.endpoint.channel(self.channel);
            let channel = channel.ok_or(CallError::Ended)?;
            match channel.answer.take() {
                Some(Answer::Reply) => return Ok(channel.port.copied().to_vec()),
                Some(Answer::NoHandler) => return Err(CallError::NoHandler { handler }),
                Some(Answer::NoReply) => return Err(CallError::NoReply { handler }),
                None => {}
            }
            if !self.wait(deadline).await? {
                return Err(CallError::DeadlineExceeded);
            }
        }
    }

    /// Handles what arrives; `false` if the deadline is over.
    async fn wait(&mut self, deadline: Option<Instant>) -> Result<bool, CallError> {
        // The reply mostly is what is handled first. Where much else comes, the deadline is looked at, and others run, too.
        if std::mem::replace(&mut self.waited, true) {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            give_way_once().await;
        }
        let ready = self.endpoint.progress();
        let waited = match deadline {
            Some(deadline) => timeout_at(deadline, ready).await,
            None => Ok(ready.await),
        };
        match waited {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => Err(CallError::Arm(error)),
            Err(_) => Ok(false),
        }
    }
}

impl<S, D> Drop for Calling<'_, S, D> {
    fn drop(&mut self) {
        self.endpoint.give_up(self.channel);
    }
}
