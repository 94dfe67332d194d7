//! End-to-end, hostile and tidy tests, with the real programs: the harness that they and the demo share.
#![forbid(unsafe_code)]

pub mod caller;
pub mod cli;
pub mod control;
pub mod fleet;
pub mod load;
pub mod machine;
pub mod manager;
pub mod node;
pub mod programs;
pub mod upstream;

/// A function that tries to learn its own credential, letter by letter, from what comes back of its calls. The file says how
/// a test asks it; `node/worker/tests/attacker.rs` proves that each of its ways finds a leak where there is one.
pub const ATTACKER: &str = include_str!("attacker.js");
