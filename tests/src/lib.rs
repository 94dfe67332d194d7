//! The harness of the end-to-end, hostile and tidy tests, which run the real programs. The demo
//! uses the harness too.
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

/// A function that tries to learn its own credential, letter by letter, from the answers to its
/// calls. The file describes the requests that it takes. `node/worker/tests/attacker.rs` proves
/// that each of its ways finds a leak if there is one.
pub const ATTACKER: &str = include_str!("attacker.js");
