//! The channel between our own processes: frames, streams, credits. Sans-IO.
#![forbid(unsafe_code)]

pub mod control;
