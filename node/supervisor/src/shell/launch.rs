//! Commands to launch: a bounded queue, and the task that writes it. The main loop only adds to the
//! queue, so that a launch that does not read blocks nothing. Another task reads launch's events,
//! however many commands wait here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use casemate_sandbox::launch::{CHILDREN_MAX, Client, Command, KILL_MAX, SOCKETS_MAX};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// Most commands that wait for launch: the start, the assignment, the note and the end of every
/// child that can be alive, and both commands for every socket. More mean that launch reads nothing
/// while children start and end.
const MAX_COMMANDS: usize = 4 * CHILDREN_MAX + 2 * SOCKETS_MAX;

/// Launch has left [`MAX_COMMANDS`] unread.
#[derive(Debug, thiserror::Error)]
#[error("casemate-launch has not read {MAX_COMMANDS} commands")]
pub(crate) struct QueueFull;

/// A command, with the descriptors that go with it.
type Queued = (Command, Vec<OwnedFd>);

/// What waits, in order.
#[derive(Debug, Default)]
struct Queue {
    commands: VecDeque<Queued>,
    /// Children whose assignment waits, and the newest assignment of each, which replaces an older
    /// one.
    assigned: BTreeMap<u64, Command>,
    /// Children that the next kill names.
    doomed: BTreeSet<u64>,
    /// Children of the kills that wait: none is named twice.
    killed: BTreeSet<u64>,
}

impl Queue {
    fn push(&mut self, command: Command, descriptors: Vec<OwnedFd>) -> Result<(), QueueFull> {
        if let Command::Assign { id, .. } = command
            && let Some(waiting) = self.assigned.get_mut(&id)
        {
            *waiting = command;
            return Ok(());
        }
        if self.commands.len() >= MAX_COMMANDS {
            return Err(QueueFull);
        }
        if let Command::Assign { id, .. } = command {
            self.assigned.insert(id, command.clone());
        }
        self.commands.push_back((command, descriptors));
        Ok(())
    }

    /// Children that end together end by one command, as far as one command names so many.
    fn end_doomed(&mut self) -> Result<(), QueueFull> {
        for id in std::mem::take(&mut self.doomed) {
            if !self.killed.insert(id) {
                continue;
            }
            match self.commands.back_mut() {
                Some((Command::Kill { ids }, _)) if ids.len() < KILL_MAX => drop(ids.insert(id)),
                _ => {
                    let ids = BTreeSet::from([id]);
                    self.push(Command::Kill { ids }, Vec::new())?;
                }
            }
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<Queued> {
        let (command, descriptors) = self.commands.pop_front()?;
        let command = match command {
            Command::Kill { ids } => {
                self.killed.retain(|id| !ids.contains(id));
                Command::Kill { ids }
            }
            Command::Assign { id, .. } => self.assigned.remove(&id).unwrap_or(command),
            command => command,
        };
        Some((command, descriptors))
    }
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    added: Notify,
}

/// The main loop's end of the queue.
#[derive(Debug)]
pub(super) struct Commands {
    shared: Arc<Shared>,
}

impl Commands {
    /// An empty queue, and the task that writes it until launch is gone.
    pub(super) fn new(
        launch: Arc<Client>,
        socket: Arc<UnixStream>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared::default());
        let commands = Self {
            shared: shared.clone(),
        };
        (commands, write(launch, socket, shared))
    }

    pub(super) fn push(
        &self,
        command: Command,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), QueueFull> {
        self.shared.queue.lock().push(command, descriptors)?;
        self.shared.added.notify_one();
        Ok(())
    }

    /// Has the next [`Commands::end_killed`] end this child.
    pub(super) fn kill(&self, id: u64) {
        self.shared.queue.lock().doomed.insert(id);
    }

    /// Ends all that were killed since the last time, by one command.
    pub(super) fn end_killed(&self) -> Result<(), QueueFull> {
        self.shared.queue.lock().end_doomed()?;
        self.shared.added.notify_one();
        Ok(())
    }
}

/// Writes commands until launch is gone, which the task that reads its events reports.
async fn write(launch: Arc<Client>, socket: Arc<UnixStream>, shared: Arc<Shared>) {
    loop {
        let next = shared.queue.lock().pop();
        let Some((command, descriptors)) = next else {
            shared.added.notified().await;
            continue;
        };
        let borrowed: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
        let send = || launch.send(&command, &borrowed);
        if let Err(error) = socket.async_io(Interest::WRITABLE, send).await {
            tracing::error!(%error, "cannot write to casemate-launch");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use casemate_sandbox::launch::NOTE_BYTES;

    use super::*;

    fn assign(id: u64, tenant_memory_mib: u32) -> Command {
        Command::Assign {
            id,
            memory_mib: NonZeroU32::MIN,
            tenant: NonZeroU32::MIN,
            tenant_memory_mib: NonZeroU32::new(tenant_memory_mib).unwrap(),
        }
    }

    fn kill(ids: impl IntoIterator<Item = u64>) -> Command {
        let ids = ids.into_iter().collect();
        Command::Kill { ids }
    }

    fn all(queue: &mut Queue) -> Vec<Command> {
        std::iter::from_fn(|| queue.pop())
            .map(|(command, _)| command)
            .collect()
    }

    fn end(queue: &mut Queue, ids: impl IntoIterator<Item = u64>) -> Result<(), QueueFull> {
        queue.doomed.extend(ids);
        queue.end_doomed()
    }

    #[test]
    fn children_that_end_together_end_by_one_command() {
        let mut queue = Queue::default();
        end(&mut queue, 0..3999).unwrap();
        // A second word about one of them adds nothing.
        end(&mut queue, [7, 3999]).unwrap();
        assert_eq!(all(&mut queue), [kill(0..4000)]);
        let most = KILL_MAX as u64;
        end(&mut queue, 0..=most).unwrap();
        assert_eq!(all(&mut queue), [kill(0..most), kill([most])]);
    }

    #[test]
    fn a_kill_never_overtakes_what_was_said_of_the_child_before() {
        let mut queue = Queue::default();
        let note = |id| Command::Note {
            id,
            note: [1; NOTE_BYTES],
        };
        end(&mut queue, [1]).unwrap();
        queue.push(note(2), Vec::new()).unwrap();
        end(&mut queue, [2, 3]).unwrap();
        assert_eq!(all(&mut queue), [kill([1]), note(2), kill([2, 3])]);
        // What was sent may be said again.
        end(&mut queue, [2]).unwrap();
        assert_eq!(all(&mut queue), [kill([2])]);
    }

    #[test]
    fn however_often_a_limit_changes_one_assignment_of_a_child_waits() {
        let mut queue = Queue::default();
        for mib in 1..=3 * MAX_COMMANDS as u32 {
            queue
                .push(assign(u64::from(mib % 2), mib), Vec::new())
                .unwrap();
        }
        let last = 3 * MAX_COMMANDS as u32;
        assert_eq!(all(&mut queue), [assign(1, last - 1), assign(0, last)]);
    }

    #[test]
    fn a_launch_that_reads_nothing_is_an_error_and_no_growth() {
        let mut queue = Queue::default();
        let mut push = |id| queue.push(Command::Release { id }, Vec::new());
        (0..MAX_COMMANDS as u64).for_each(|id| push(id).unwrap());
        let error = push(0).unwrap_err();
        assert!(error.to_string().contains("has not read"), "{error}");
        assert!(end(&mut queue, [1]).is_err());
    }
}
