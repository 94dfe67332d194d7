//! The vault's decisions: opening, egress policy, injection, scrubbing. Pure.
#![forbid(unsafe_code)]
