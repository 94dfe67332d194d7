//! The vault's memory on disk.
#![forbid(unsafe_code)]
