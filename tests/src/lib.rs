//! End-to-end, hostile and tidy tests, with the real programs: the harness that they and the demo share.
#![forbid(unsafe_code)]

pub mod caller;
pub mod cli;
pub mod control;
pub mod fleet;
pub mod machine;
pub mod node;
pub mod programs;
pub mod upstream;
