//! A worker's life: spare, loading, serving, end.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_channel::control::{Control, read_sealed_memfd};
use casemate_channel::{acceptor, opener};
use casemate_wire::control::worker::{FromWorker, Load, ToWorker};
use casemate_wire::control::{Failure, LayerReport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::bundle::{Bundle, MAX_BUNDLE_BYTES};
use crate::engine::{Engine, LoadError, Platform, exit_code};
use crate::logs::cut;
use crate::serve::{End, Server};
use crate::state::Worker;

/// Messages that may wait for the supervisor, which reads continuously.
const OUTBOX_MESSAGES: usize = 1024;
/// Messages of the supervisor that may wait for the serving loop, each with its descriptors; the
/// socket holds any others. The supervisor sends one for each restarted vault or gateway, and one
/// to stop.
const INBOX_MESSAGES: usize = 4;

/// How long an ending worker waits until its last messages are read.
const LAST_WORDS: Duration = Duration::from_millis(200);

type Socket = Control<FromWorker, ToWorker>;

/// A message of the supervisor with its descriptors.
pub(crate) type Order = (ToWorker, Vec<OwnedFd>);

/// A worker without a function, before its sandbox closes.
pub(crate) struct Spare {
    engine: Engine,
    worker: Rc<Worker>,
    control: Arc<Socket>,
    outbox: mpsc::Sender<FromWorker>,
    sender: JoinHandle<()>,
}

/// Why a worker ends before it serves.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// The supervisor broke the protocol.
    #[error("{0}")]
    Protocol(String),
    /// The function cannot be loaded; the tenant reads the reason.
    #[error("{0}")]
    Function(String),
    /// The function exceeded a limit while loading.
    #[error(transparent)]
    Stopped(LoadError),
}

impl Spare {
    /// Makes everything that needs files, threads or descriptors.
    ///
    /// # Errors
    /// One of these is unavailable.
    pub(crate) async fn start(platform: Platform) -> Result<Self, Box<dyn std::error::Error>> {
        let control: Arc<Socket> = Arc::new(Control::new(
            std::io::stdin().as_fd().try_clone_to_owned()?,
        )?);
        let (outbox, mut messages) = mpsc::channel(OUTBOX_MESSAGES);
        let sending = control.clone();
        let sender = tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                if sending.send(&message, &[]).await.is_err() {
                    break;
                }
            }
        });
        let worker = Worker::new(outbox.clone());
        let engine = Engine::start(platform, worker.clone()).await?;
        Ok(Self {
            engine,
            worker,
            control,
            outbox,
            sender,
        })
    }

    /// Loads and runs the function that the supervisor sends; returns the process's exit code.
    pub(crate) async fn live(self, layers: Vec<LayerReport>) -> u8 {
        let Self {
            engine,
            worker,
            control,
            outbox,
            sender,
        } = self;
        let _ = outbox.try_send(FromWorker::Ready { layers });
        let mut written = None;
        let code = match control.recv().await {
            Ok(Some((ToWorker::Load(load), fds))) => {
                let began = Instant::now();
                match Self::load(engine, &worker, &load, fds).await {
                    Ok((engine, acceptor)) => {
                        let load_us =
                            u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
                        let _ = outbox.try_send(FromWorker::Loaded { load_us });
                        let server = Server::new(engine, worker.clone(), acceptor, listen(control));
                        let (end, acceptor) = server.run().await;
                        written = acceptor.as_ref().map(casemate_channel::Acceptor::ended);
                        drop(acceptor);
                        farewell(end, &outbox)
                    }
                    Err(error) => {
                        let _ = outbox.try_send(FromWorker::LoadFailed {
                            message: cut(&error.to_string()),
                        });
                        exit_code(Failure::LoadFailed)
                    }
                }
            }
            // Stopped before use: nothing to finish.
            Ok(Some((ToWorker::Stop { .. }, _)) | None) => 0,
            Ok(Some((ToWorker::Channel(peer), _))) => {
                tracing::error!(
                    ?peer,
                    "the supervisor sent a channel to a worker without a function; the worker ends"
                );
                exit_code(Failure::WorkerLost)
            }
            Err(error) => {
                tracing::error!(%error, "the control channel failed");
                exit_code(Failure::WorkerLost)
            }
        };
        // Its messages end with the last sender, and its answers with the last handle of a stream.
        worker.end();
        drop((worker, outbox));
        let last_words = async {
            let _ = sender.await;
            if let Some(written) = written {
                written.await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
        code
    }

    async fn load(
        mut engine: Engine,
        worker: &Worker,
        load: &Load,
        fds: Vec<OwnedFd>,
    ) -> Result<(Engine, casemate_channel::Acceptor), Ended> {
        let [bundle, gateway, vault] = <[OwnedFd; 3]>::try_from(fds).map_err(|fds| {
            Ended::Protocol(format!("expected three descriptors, found {}", fds.len()))
        })?;
        let archive = read_sealed_memfd(bundle, MAX_BUNDLE_BYTES)
            .map_err(|error| Ended::Protocol(error.to_string()))?;
        let bundle = Bundle::parse(&archive).map_err(|error| Ended::Function(error.to_string()))?;
        let unusable =
            |error: std::io::Error| Ended::Protocol(format!("a channel cannot be used: {error}"));
        let (acceptor, vault) = (
            acceptor(gateway).map_err(unusable)?,
            opener(vault).map_err(unusable)?,
        );
        let bindings = load
            .bindings
            .iter()
            .map(|binding| binding.name.clone())
            .collect();
        worker.configure(load.limits, bindings, vault);
        match engine.load(bundle, load).await {
            Ok(()) => Ok((engine, acceptor)),
            Err(LoadError::Function(message)) => Err(Ended::Function(message)),
            Err(stopped) => Err(Ended::Stopped(stopped)),
        }
    }
}

/// Reads the control channel into a queue, which costs nothing while the channel is silent.
fn listen(control: Arc<Socket>) -> mpsc::Receiver<Order> {
    let (sender, inbox) = mpsc::channel(INBOX_MESSAGES);
    tokio::spawn(async move {
        // An error ends the channel like a close: the worker then ends.
        while let Ok(Some(order)) = control.recv().await {
            if sender.send(order).await.is_err() {
                break;
            }
        }
    });
    inbox
}

/// Reports why serving ended.
fn farewell(end: End, outbox: &mpsc::Sender<FromWorker>) -> u8 {
    match end {
        End::Stopped => 0,
        End::Exceeded(failure) => {
            let message = crate::engine::limit_message(failure).to_owned();
            let begun = crate::engine::begun();
            let _ = outbox.try_send(FromWorker::Fatal {
                failure,
                message,
                begun,
            });
            exit_code(failure)
        }
    }
}
