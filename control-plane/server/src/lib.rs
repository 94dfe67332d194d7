//! casemate-control: the control plane.
//!
//! It is trusted for availability only: it holds no key that signs a statement, opens a secret or makes a node a member,
//! only its own online keys. It judges what it is given with the same judge as everybody, so that nonsense is refused
//! early; what it stores and pushes is judged again by each node.
//!
//! | module | holds |
//! |---|---|
//! | `plane` | the state, and each change of it: judged, written with an audit record, shown |
//! | `https` | the API: routed and authorised by the table in `casemate-api` |
//! | `quic` | the nodes' connections: a thin shell around `casemate_push::ControlEnd` |
//! | `arrivals`, `places` | slots of connections: without proof of identity, and with it |
//! | `bundles`, `images` | bundles in an object store; files of images |
//! | `backup` | a copy of the state while it is used, and the way back |
//! | `state_folder`, `new_folder` | what lies in a state folder; a folder that is there whole or not at all |
//! | `tls`, `keys`, `files`, `format`, `config` | what it starts from |
#![forbid(unsafe_code)]

mod arrivals;
mod backup;
mod bundles;
mod config;
mod failure;
mod fault;
mod files;
mod format;
mod https;
mod images;
mod keys;
mod new_folder;
mod places;
mod plane;
mod quic;
mod reserve;
mod start;
mod state_folder;
mod tls;

pub use backup::{Label, Outcome as BackupOutcome, Progress, backup, restore};
pub use config::{ApiLimits, Config};
pub use failure::Failure;
pub use plane::LogLimits;
pub use start::{Initialised, init, serve};
