//! The program itself, against a control plane that may lie.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "../../../../tests/fixtures/archive.rs"]
mod archive;
mod ci;
mod clocks;
mod daily;
mod earlier;
mod environments;
mod fake;
mod fleet;
mod freshness;
mod holdings;
mod hostile;
mod input;
mod journey;
mod keys;
mod outcomes;
mod records;
mod restored;
mod world;
