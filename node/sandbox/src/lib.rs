//! The walls around each program of a node, and the protocol of `casemate-launch`.
//!
//! A program closes itself in with a straight list of system calls, each with its own error. What a kernel cannot do
//! is reported, never passed over in silence: every step gives [`LayerReport`]s, which [`missing`] holds against the
//! operator's `require = [...]`. There is no build in which this does nothing.
//!
//! - A worker: [`before_engine`] first of all in `main`, while there is one thread; then V8; then [`close`], before the
//!   first byte of tenant code.
//! - Everybody else: [`raise_descriptors`], and [`close_with`] once files are read and ports are bound, and **before threads
//!   are started**: Landlock and the capabilities are a thread's own, and only threads started later inherit them.

mod error;
mod inside;
mod isolation;
mod layers;
mod memory;
mod policy;
mod speculation;
mod syscalls;

pub mod launch;

pub use casemate_wire::control::LayerReport;
pub use error::SandboxError;
pub use inside::{Access, before_engine, close, close_with, raise_descriptors};
pub use layers::{LAYERS, UnknownLayer, missing, status};
pub use memory::workers_memory_mib;
pub use policy::{Call, Verdict, calls};
pub use syscalls::cpu_time;

/// Who is closing itself in. Each has its own list of system calls: `policies/*.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// `casemate-node`: QUIC out, files of its folder, an administration socket.
    Supervisor,
    /// `casemate-gateway`: serves on listeners that are already bound; opens nothing but renewed certificates.
    Gateway,
    /// `casemate-vault`: dials out, files of its folder.
    Vault,
    /// `casemate-worker`: computes, and speaks on descriptors that it is given. Nothing else.
    Worker,
}
