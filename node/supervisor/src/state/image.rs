//! Fetching the machine's next image: whether, from where on, and when again. The vault has accepted it; a piece is asked for,
//! written, and the next one asked for, so that memory holds one at a time. What is on the disk is what counts: a restart goes
//! on from there. Only init, which is root, acts on a file that is whole.

use casemate_push::MAX_IMAGE_PIECE_BYTES;
use casemate_trust::id::Digest;
use casemate_trust::image::ImageVersion;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Millis;

/// What stays free on the state partition, bytes: for the vault's records, bundles, and what else is accepted meanwhile.
pub(crate) const MARGIN_BYTES: u64 = 64 * 1024 * 1024;
/// First pause after a failure, milliseconds; doubled each time.
const RETRY_MIN_MS: Millis = 5_000;
/// Longest pause: a control plane that sends wrong bytes costs one image's traffic in that time.
const RETRY_MAX_MS: Millis = 600_000;
/// Until it is looked again whether there is room, milliseconds.
const ROOM_AGAIN_MS: Millis = 60_000;

/// An image that the vault has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) version: ImageVersion,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

/// What init says of the machine, as far as it decides anything here. What else it says is passed on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Machine {
    version: ImageVersion,
    /// It has a boot partition to write one to.
    #[serde(default)]
    takes_images: bool,
    #[serde(default)]
    refused: Vec<RefusedImage>,
}

/// An image that did not start here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RefusedImage {
    digest: Digest,
}

/// What is to be done on the disk, one at a time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Remove everything but what belongs to this image, and say what is there. A beginning goes too when less is free than
    /// has to stay so: others need the room more.
    Look { keep: Option<Image> },
    /// Add a piece.
    Write {
        image: Image,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// Check the digest; if it is right give the file its name, else remove it.
    Finish { image: Image },
}

/// What came of a job.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Of `Look`.
    Looked {
        /// Bytes of the image that are there.
        fetched: u64,
        /// Whether it lies under its name.
        is_whole: bool,
        /// Bytes that are free.
        room: u64,
    },
    /// Of `Write`.
    Written {
        /// Bytes of the image that are there.
        fetched: u64,
        /// Bytes that are free.
        room: u64,
    },
    /// Of `Finish`: whether the digest was right.
    Finished { is_right: bool },
    /// Of any.
    Failed { message: String },
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// On the disk.
    Disk(Job),
    /// Ask the control plane for a piece.
    Ask {
        digest: Digest,
        offset: u64,
        bytes: u32,
    },
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The disk was not looked at.
    Unknown,
    /// There is nothing to fetch.
    Nothing,
    /// So many bytes are there.
    Part(u64),
    /// Of so many bytes, which are there, the digest is to be checked.
    Complete,
    /// It lies under its name.
    Whole,
    /// So many bytes are there, and no room for the others.
    NoRoom(u64),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Fetching {
    /// Whether this machine boots images at all.
    boots_images: bool,
    accepted: Option<Image>,
    machine: Option<Machine>,
    /// What init says, whole, or why it is not known.
    said: Result<Value, String>,
    target: Option<Image>,
    stage: Stage,
    is_connected: bool,
    /// A piece is on its way.
    is_asked: bool,
    /// The disk is at work.
    is_busy: bool,
    failures: u32,
    again_ms: Millis,
    error: Option<String>,
}

impl Fetching {
    pub(crate) fn new(boots_images: bool) -> Self {
        Self {
            boots_images,
            accepted: None,
            machine: None,
            said: Ok(Value::Null),
            target: None,
            stage: Stage::Unknown,
            is_connected: false,
            is_asked: false,
            is_busy: false,
            failures: 0,
            again_ms: 0,
            error: None,
        }
    }

    /// The vault has accepted this one.
    pub(crate) fn accepted(&mut self, image: Image) {
        self.accepted = Some(image);
    }

    /// What init's file says now. A file that is unreadable, or says nothing that is understood, stops all fetching.
    pub(crate) fn machine(&mut self, read: Result<&[u8], String>) {
        let parsed = read.and_then(|bytes| {
            let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            let machine = Machine::deserialize(&value).map_err(|error| error.to_string())?;
            Ok((machine, value))
        });
        match parsed {
            Ok((machine, value)) => (self.machine, self.said) = (Some(machine), Ok(value)),
            Err(message) => (self.machine, self.said) = (None, Err(message)),
        }
    }

    /// There is a connection, or there is none; what was asked for on the one before does not come.
    pub(crate) fn connected(&mut self, is_connected: bool) {
        (self.is_connected, self.is_asked) = (is_connected, false);
    }

    /// The control plane does not have it for us.
    pub(crate) fn unavailable(&mut self, digest: &Digest, now_ms: Millis) {
        self.is_asked = false;
        if self.target.is_some_and(|target| target.digest == *digest) {
            self.fail(
                "the control plane does not have this image now".into(),
                now_ms,
            );
        }
    }

    /// A piece has come; an empty one is a stream that broke before its first byte.
    pub(crate) fn piece(
        &mut self,
        digest: &Digest,
        offset: u64,
        bytes: Vec<u8>,
        now_ms: Millis,
    ) -> Option<Job> {
        self.is_asked = false;
        let image = self.target.filter(|target| target.digest == *digest)?;
        if self.is_busy || self.stage != Stage::Part(offset) {
            return None;
        }
        if bytes.is_empty() {
            self.fail(
                "the control plane sent no bytes of this image".into(),
                now_ms,
            );
            return None;
        }
        self.is_busy = true;
        let most = usize::try_from(image.bytes - offset).unwrap_or(usize::MAX);
        let mut bytes = bytes;
        bytes.truncate(most);
        Some(Job::Write {
            image,
            offset,
            bytes,
        })
    }

    /// What came of the job that was given out.
    pub(crate) fn done(&mut self, done: Done, now_ms: Millis) {
        self.is_busy = false;
        let Some(target) = self.target else {
            self.stage = match done {
                Done::Failed { message } => {
                    self.fail(message, now_ms);
                    Stage::Unknown
                }
                _ => Stage::Nothing,
            };
            return;
        };
        let of_bytes = |fetched: u64| match fetched {
            fetched if fetched >= target.bytes => Stage::Complete,
            fetched => Stage::Part(fetched),
        };
        self.stage = match done {
            Done::Looked { is_whole: true, .. } => Stage::Whole,
            Done::Looked { fetched, room, .. } => {
                let needed = target.bytes.saturating_sub(fetched) + MARGIN_BYTES;
                if fetched < target.bytes && room < needed {
                    self.again_ms = now_ms + ROOM_AGAIN_MS;
                    self.error = Some(format!(
                        "{needed} bytes are needed on the state partition, {MARGIN_BYTES} of them to stay free; {room} are free"
                    ));
                    Stage::NoRoom(fetched)
                } else {
                    of_bytes(fetched)
                }
            }
            Done::Written { fetched, room } if fetched < target.bytes && room < MARGIN_BYTES => {
                let message = format!("others fill the state partition: {room} bytes are free");
                self.fail(message, now_ms);
                Stage::Unknown
            }
            Done::Written { fetched, .. } => {
                self.error = None;
                of_bytes(fetched)
            }
            Done::Finished { is_right: true } => {
                (self.failures, self.error) = (0, None);
                Stage::Whole
            }
            Done::Finished { is_right: false } => {
                self.fail(
                    "the bytes that came have another digest; they were removed".into(),
                    now_ms,
                );
                Stage::Part(0)
            }
            Done::Failed { message } => {
                self.fail(message, now_ms);
                Stage::Unknown
            }
        };
    }

    fn fail(&mut self, message: String, now_ms: Millis) {
        self.failures += 1;
        let pause = RETRY_MIN_MS << (self.failures - 1).min(10);
        self.again_ms = now_ms + pause.min(RETRY_MAX_MS);
        self.error = Some(message);
    }

    /// The image that this machine should have and does not run.
    fn wanted(&self) -> Option<Image> {
        let (image, machine) = (self.accepted?, self.machine.as_ref()?);
        let is_refused = machine
            .refused
            .iter()
            .any(|refused| refused.digest == image.digest);
        let is_of_use = machine.takes_images && image.version > machine.version;
        (is_of_use && !is_refused).then_some(image)
    }

    /// What is to be done now. To be asked after whatever has happened, and as time goes by.
    pub(crate) fn next(&mut self, now_ms: Millis) -> Option<Action> {
        // Without a word of init nothing is fetched, and nothing is removed that a restart would miss.
        if !self.boots_images || self.is_busy || self.machine.is_none() {
            return None;
        }
        let wanted = self.wanted();
        if wanted != self.target {
            (self.target, self.stage) = (wanted, Stage::Unknown);
            (self.failures, self.again_ms, self.error) = (0, 0, None);
        }
        if now_ms < self.again_ms {
            return None;
        }
        match (self.stage, self.target) {
            (Stage::Unknown | Stage::NoRoom(_), keep) => self.disk(Job::Look { keep }),
            (Stage::Complete, Some(image)) => self.disk(Job::Finish { image }),
            (Stage::Part(offset), Some(image)) if self.is_connected && !self.is_asked => {
                self.is_asked = true;
                let left = u32::try_from(image.bytes - offset).unwrap_or(u32::MAX);
                Some(Action::Ask {
                    digest: image.digest,
                    offset,
                    bytes: left.min(MAX_IMAGE_PIECE_BYTES),
                })
            }
            _ => None,
        }
    }

    fn disk(&mut self, job: Job) -> Option<Action> {
        self.is_busy = true;
        Some(Action::Disk(job))
    }

    /// What init says, for the status page.
    pub(crate) fn describe_machine(&self) -> Value {
        self.said.clone().unwrap_or(Value::Null)
    }

    /// The accepted image and how far it is, for the status page.
    pub(crate) fn describe(&self) -> Value {
        let Some(image) = self.accepted else {
            return Value::Null;
        };
        let (mut state, mut fetched) = self.state(&image);
        let mut error = self.error.clone();
        if self.boots_images
            && let Err(message) = &self.said
        {
            (state, fetched) = ("machine_unknown", 0);
            error = Some(format!("what init says of the machine: {message}"));
        }
        json!({
            "version": image.version, "digest": image.digest, "bytes": image.bytes,
            "fetched_bytes": fetched, "state": state, "error": error,
        })
    }

    fn state(&self, image: &Image) -> (&'static str, u64) {
        if !self.boots_images {
            return ("not_an_image", 0);
        }
        let Some(machine) = &self.machine else {
            return ("machine_unknown", 0);
        };
        if self.wanted().is_none() {
            let state = match image.version.cmp(&machine.version) {
                std::cmp::Ordering::Less => "older",
                std::cmp::Ordering::Equal => "installed",
                std::cmp::Ordering::Greater if !machine.takes_images => "not_taken",
                std::cmp::Ordering::Greater => "refused",
            };
            return (state, 0);
        }
        if self.wanted() != self.target {
            return ("waiting", 0);
        }
        match self.stage {
            Stage::Unknown | Stage::Nothing => ("waiting", 0),
            Stage::Part(fetched) if self.is_asked || self.is_busy => ("fetching", fetched),
            Stage::Part(fetched) => ("waiting", fetched),
            Stage::Complete => ("verifying", image.bytes),
            Stage::Whole => ("ready", image.bytes),
            Stage::NoRoom(fetched) => ("no_room", fetched),
        }
    }
}

#[cfg(test)]
mod tests;
