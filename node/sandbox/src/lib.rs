//! The sandbox of each program of a node, and the protocol of `casemate-launch`.
//!
//! A program closes its sandbox with a straight list of system calls, each with its own error. What
//! a kernel lacks is always reported: every step returns [`LayerReport`]s, which [`missing`]
//! compares with the operator's `require = [...]`. There is no build without the sandbox.
//!
//! - A worker: [`before_engine`] first of all in `main`, while there is one thread; then V8; then
//!   [`close`], before the
//!   first byte of tenant code.
//! - Every other program: [`raise_descriptors`], and [`close_with`] once files are read and ports
//!   are bound, and **before threads are started**: Landlock and the capabilities apply to one
//!   thread, and only threads started later inherit them.

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

/// The program that closes its sandbox. Each has its own list of system calls: `policies/*.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// `casemate-node`: QUIC out, files of its folder, an administration socket.
    Supervisor,
    /// `casemate-gateway`: serves on listeners that are already bound; opens nothing but renewed
    /// certificates.
    Gateway,
    /// `casemate-vault`: dials out, files of its folder.
    Vault,
    /// `casemate-worker`: computes, and communicates on descriptors that it was given. Nothing
    /// else.
    Worker,
}
