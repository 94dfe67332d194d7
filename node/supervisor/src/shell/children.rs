//! Children: started through launch, spoken to through queues, so that none of them can make us wait.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use casemate_channel::Control;
use casemate_sandbox::launch::{Client, Command, Event, Program};
use casemate_wire::control::Message;
use casemate_wire::control::gateway::{FromGateway, ToGateway};
use casemate_wire::control::vault::{FromVault, ToVault};
use casemate_wire::control::worker::{FromWorker, ToWorker};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Happening;
use super::launch::{Commands, QueueFull};

/// Messages that wait for one worker, or for the vault or gateway: a gateway that starts is sent a
/// route of every function and a channel of every worker at once. A child that leaves more unread is
/// ended.
const MAX_QUEUE_OF_WORKER: usize = 1024;
const MAX_QUEUE: usize = 1 << 18;

/// Messages of a child that are heard at once, and in each [`PACE_ROUND`] for ever: several times what an honest worker says
/// that fails every request. A worker that was taken over says more, and would take a processor from all tenants, since the
/// supervisor's time is nobody's.
const PACE_BURST: u32 = 20_000;
const PACE_MESSAGES: u32 = 1000;
const PACE_ROUND: Duration = Duration::from_millis(100);

/// How fast a child is heard. What it says beyond that waits in its socket, and the child with it.
#[derive(Debug)]
struct Pace {
    left: u32,
    round: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            left: PACE_BURST,
            round: Instant::now(),
        }
    }

    /// Waits until one more message may be heard.
    async fn keep(&mut self) {
        if self.left == 0 {
            tokio::time::sleep_until(self.round + PACE_ROUND).await;
        }
        let rounds = self.round.elapsed().as_millis() / PACE_ROUND.as_millis();
        if rounds > 0 {
            let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
            let more = rounds.saturating_mul(PACE_MESSAGES);
            self.left = self.left.saturating_add(more).min(PACE_BURST);
            self.round = Instant::now();
        }
        self.left = self.left.saturating_sub(1);
    }
}

/// Who speaks.
#[derive(Debug)]
struct Speaker {
    program: &'static str,
    id: u64,
    /// Of whoever may be hostile.
    pace: Option<Pace>,
}

impl Speaker {
    fn own(program: &'static str, id: u64) -> Self {
        Self {
            program,
            id,
            pace: None,
        }
    }

    fn worker(id: u64) -> Self {
        Self {
            program: "casemate-worker",
            id,
            pace: Some(Pace::new()),
        }
    }
}

/// A way to say something to a child.
#[derive(Debug)]
enum Voice {
    Vault(mpsc::Sender<(ToVault, Vec<OwnedFd>)>),
    Gateway(mpsc::Sender<(ToGateway, Vec<OwnedFd>)>),
    Worker(mpsc::Sender<(ToWorker, Vec<OwnedFd>)>),
}

/// The children of this supervisor.
pub(crate) struct Children {
    launch: Arc<Client>,
    /// tokio's stream type only watches the descriptor.
    watch: Arc<UnixStream>,
    commands: Commands,
    happenings: mpsc::Sender<Happening>,
    voices: BTreeMap<u64, Voice>,
}

impl Children {
    /// Through this launch; its events come as happenings.
    pub(crate) fn new(launch: Client, happenings: mpsc::Sender<Happening>) -> io::Result<Self> {
        let watched = std::os::unix::net::UnixStream::from(launch.as_fd().try_clone_to_owned()?);
        let (launch, watch) = (Arc::new(launch), Arc::new(UnixStream::from_std(watched)?));
        let (commands, writer) = Commands::new(launch.clone(), watch.clone());
        tokio::spawn(writer);
        Ok(Self {
            launch,
            watch,
            commands,
            happenings,
            voices: BTreeMap::new(),
        })
    }

    /// Has launch's events come as happenings from now on.
    pub(crate) fn listen(&self) {
        let (launch, watch) = (self.launch.clone(), self.watch.clone());
        tokio::spawn(events(launch, watch, self.happenings.clone()));
    }

    /// The next listening socket that launch holds, and its number. Not once events come as happenings.
    pub(crate) async fn held(&self) -> io::Result<(u64, OwnedFd)> {
        let receive = || self.launch.recv_with_descriptor();
        let received = self.watch.async_io(Interest::READABLE, receive).await?;
        let Some((Event::Held { id }, Some(socket))) = received else {
            let what = format!("expected a listening socket from launch, got {received:?}");
            return Err(io::Error::other(what));
        };
        Ok((id, socket))
    }

    /// Has launch hold a listening socket.
    pub(crate) fn hold(&self, id: u64, socket: OwnedFd) -> Result<(), QueueFull> {
        self.commands.push(Command::Hold { id }, vec![socket])
    }

    /// The next child of a supervisor that has crashed, as launch hands it over; everything that it says comes as
    /// happenings. Not once events do.
    pub(crate) async fn adopt(&mut self) -> io::Result<Event> {
        let receive = || self.launch.recv_with_descriptor();
        let received = self.watch.async_io(Interest::READABLE, receive).await?;
        let Some((event @ Event::Adopted { id, program, .. }, Some(ours))) = received else {
            let what = format!("expected a child to adopt from launch, got {received:?}");
            return Err(io::Error::other(what));
        };
        let voice = self.voice(id, program, ours)?;
        self.voices.insert(id, voice);
        Ok(event)
    }

    /// Starts a child; everything that it says comes as happenings.
    pub(crate) fn start(
        &mut self,
        id: u64,
        program: Program,
        memory_mib: u32,
        pids: u32,
    ) -> io::Result<()> {
        let (ours, theirs) = casemate_channel::control::pair()?;
        // Launch keeps it for the supervisor that comes after us if we crash.
        let kept = ours.try_clone()?;
        let voice = self.voice(id, program, ours)?;
        let command = Command::Start {
            id,
            program,
            memory_mib,
            pids,
        };
        self.commands
            .push(command, vec![theirs, kept])
            .map_err(io::Error::other)?;
        self.voices.insert(id, voice);
        Ok(())
    }

    /// The way to speak to a child over our end of its control socket.
    fn voice(&self, id: u64, program: Program, ours: OwnedFd) -> io::Result<Voice> {
        let happenings = self.happenings.clone();
        Ok(match program {
            Program::Vault => Voice::Vault(speak::<ToVault, FromVault>(
                ours,
                Speaker::own("casemate-vault", id),
                happenings,
                |id, message, _| Happening::Vault(id, message),
            )?),
            Program::Gateway => Voice::Gateway(speak::<ToGateway, FromGateway>(
                ours,
                Speaker::own("casemate-gateway", id),
                happenings,
                // No message of the gateway has more than one.
                |id, message, fds| Happening::Gateway(id, message, fds.into_iter().next()),
            )?),
            Program::Worker => Voice::Worker(speak::<ToWorker, FromWorker>(
                ours,
                Speaker::worker(id),
                happenings,
                |id, message, _| Happening::Worker(id, message),
            )?),
        })
    }

    /// Ends a child, together with all others that end before the next [`Children::end_killed`].
    pub(crate) fn kill(&self, id: u64) {
        self.commands.kill(id);
    }

    /// Ends all that were killed since the last time, by one command.
    pub(crate) fn end_killed(&self) -> Result<(), QueueFull> {
        self.commands.end_killed()
    }

    /// Sends a command that comes without a descriptor.
    pub(crate) fn command(&self, command: Command) -> Result<(), QueueFull> {
        self.commands.push(command, Vec::new())
    }

    /// A child is gone.
    pub(crate) fn forget(&mut self, id: u64) {
        self.voices.remove(&id);
    }

    /// Queues a message to the vault; false when there is none, or when it is ended because it reads nothing.
    pub(crate) fn vault(&self, id: Option<u64>, message: ToVault, fds: Vec<OwnedFd>) -> bool {
        match id.and_then(|id| Some((id, self.voices.get(&id)?))) {
            Some((id, Voice::Vault(queue))) => self.queue(id, queue, (message, fds)),
            _ => false,
        }
    }

    /// Queues a message to the gateway; false when there is none, or when it is ended because it reads nothing.
    pub(crate) fn gateway(&self, id: Option<u64>, message: ToGateway, fds: Vec<OwnedFd>) -> bool {
        match id.and_then(|id| Some((id, self.voices.get(&id)?))) {
            Some((id, Voice::Gateway(queue))) => self.queue(id, queue, (message, fds)),
            _ => false,
        }
    }

    /// Queues a message to a worker; false when there is none, or when it is ended because it reads nothing.
    pub(crate) fn worker(&self, id: u64, message: ToWorker, fds: Vec<OwnedFd>) -> bool {
        match self.voices.get(&id) {
            Some(Voice::Worker(queue)) => self.queue(id, queue, (message, fds)),
            _ => false,
        }
    }

    /// A child that leaves its queue full does not read, and is ended: a successor of the vault or gateway is told
    /// everything again, and a worker is replaced. So no message is lost while its receiver stays.
    fn queue<M>(&self, id: u64, queue: &mpsc::Sender<M>, message: M) -> bool {
        match queue.try_send(message) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::error!(
                    child = id,
                    queued = queue.max_capacity(),
                    "control-channel queue of a child process is full; the child is ended"
                );
                self.kill(id);
                false
            }
        }
    }
}

/// Launch's events, until it is gone.
async fn events(launch: Arc<Client>, watch: Arc<UnixStream>, happenings: mpsc::Sender<Happening>) {
    loop {
        let happening = match watch.async_io(Interest::READABLE, || launch.recv()).await {
            Ok(Some(Event::Started { id, pid })) => Happening::Started(id, pid),
            Ok(Some(Event::Refused { id, refusal })) => {
                Happening::Refused(id, format!("{refusal:?}"))
            }
            Ok(Some(Event::Exited { id, end })) => Happening::Exited(id, end),
            // What is to be adopted comes first or never: launch is not what it was.
            Ok(Some(Event::Adopted { .. } | Event::Held { .. }) | None) | Err(_) => {
                Happening::LaunchGone
            }
        };
        let last = matches!(happening, Happening::LaunchGone);
        if happenings.send(happening).await.is_err() || last {
            return;
        }
    }
}

/// Two tasks for a child: one writes what is queued, one reads what it says until it closes.
fn speak<Out, In>(
    socket: OwnedFd,
    Speaker {
        program,
        id,
        mut pace,
    }: Speaker,
    happenings: mpsc::Sender<Happening>,
    heard: fn(u64, Box<In>, Vec<OwnedFd>) -> Happening,
) -> io::Result<mpsc::Sender<(Out, Vec<OwnedFd>)>>
where
    Out: Message + Send + Sync + 'static,
    In: Message + Send + 'static,
{
    let control = Arc::new(Control::<Out, In>::new(socket)?);
    let most = if pace.is_some() {
        MAX_QUEUE_OF_WORKER
    } else {
        MAX_QUEUE
    };
    let (queue, mut queued) = mpsc::channel::<(Out, Vec<OwnedFd>)>(most);
    let (writer, deaf) = (control.clone(), happenings.clone());
    tokio::spawn(async move {
        while let Some((message, fds)) = queued.recv().await {
            let borrowed: Vec<_> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
            if let Err(error) = writer.send(&message, &borrowed).await {
                tracing::warn!(program, child = id, %error, "cannot write to the control channel of a child process");
                // Nobody left to tell means that we end ourselves.
                let _told = deaf.send(Happening::Deaf(id)).await;
                return;
            }
        }
    });
    tokio::spawn(async move {
        loop {
            if let Some(pace) = &mut pace {
                pace.keep().await;
            }
            match control.recv().await {
                Ok(Some((message, fds))) => {
                    let happening = heard(id, Box::new(message), fds);
                    if happenings.send(happening).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(
                        program, child = id, %error,
                        "invalid control message from child process; its control channel is closed"
                    );
                    break;
                }
            }
        }
        // Nobody left to tell means that we end ourselves.
        let _told = happenings.send(Happening::Closed(id)).await;
    });
    Ok(queue)
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    use casemate_channel::control::{pair, sealed_memfd};
    use casemate_wire::control::encode;
    use casemate_wire::control::vault::ToVault;
    use casemate_wire::frame::control_packet;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    fn packet(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::empty(),
        );
        sent.unwrap();
    }

    #[tokio::test]
    async fn a_bad_packet_ends_the_worker_that_sent_it_and_nobody_else() {
        let gone = control_packet(
            &encode(&ToVault::Gone {
                worker: casemate_wire::control::WorkerId(1),
            })
            .unwrap(),
        );
        let large = sealed_memfd("large", &vec![0; 1 << 20]).unwrap();
        let (large, many) = (vec![large.as_fd()], vec![large.as_fd(); 16]);
        let cases: [(&[u8], &[BorrowedFd<'_>]); 6] = [
            (b"garbage", &[]),
            (&gone, &[]),
            (&control_packet(&[0xff; 100]), &[]),
            (&vec![0; 100_000], &[]),
            (&control_packet(&[]), &large),
            (&gone, &many),
        ];
        for (bytes, fds) in cases {
            let (happenings, mut happened) = mpsc::channel(8);
            let (hostile, theirs) = pair().unwrap();
            let (honest, others) = pair().unwrap();
            let start = |socket, id| {
                let child = Speaker::worker(id);
                let heard = |id, message, _| Happening::Worker(id, message);
                speak::<ToWorker, FromWorker>(socket, child, happenings.clone(), heard)
            };
            let _queues = (start(theirs, 1).unwrap(), start(others, 2).unwrap());
            packet(&hostile, bytes, fds);
            let mut next = async || {
                let next = tokio::time::timeout(Duration::from_secs(10), happened.recv());
                next.await.unwrap().unwrap()
            };
            assert!(matches!(next().await, Happening::Closed(1)));
            let honest = Control::<FromWorker, ToWorker>::new(honest).unwrap();
            let loaded = FromWorker::Loaded { load_us: 1 };
            honest.send(&loaded, &[]).await.unwrap();
            assert!(matches!(next().await, Happening::Worker(2, message) if *message == loaded));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_says_more_than_any_honest_one_is_heard_at_a_pace() {
        let (happenings, mut happened) = mpsc::channel(8);
        let (hostile, theirs) = pair().unwrap();
        let child = Speaker::worker(1);
        let heard = |id, message, _| Happening::Worker(id, message);
        let queue = speak::<ToWorker, FromWorker>(theirs, child, happenings, heard).unwrap();
        let hostile = Control::<FromWorker, ToWorker>::new(hostile).unwrap();
        let all = PACE_BURST + 3 * PACE_MESSAGES;
        tokio::spawn(async move {
            for _ in 0..all {
                let nothing = FromWorker::Outcomes(Vec::new());
                hostile.send(&nothing, &[]).await.unwrap();
            }
        });
        let begin = Instant::now();
        for heard in 1..=all {
            assert!(matches!(
                happened.recv().await,
                Some(Happening::Worker(1, _))
            ));
            let rounds = begin.elapsed().as_millis() / PACE_ROUND.as_millis();
            let most = PACE_BURST + PACE_MESSAGES * u32::try_from(rounds).unwrap();
            assert!(heard <= most, "{heard} of {most}");
        }
        drop(queue);
    }
}
