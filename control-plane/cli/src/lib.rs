//! The command line for operators and tenants: everything in the fleet is signed or sealed by this
//! program.
#![forbid(unsafe_code)]

pub mod args;
pub mod bundle;
pub mod bundle_cache;
pub mod client;
pub mod clock;
pub mod commands;
pub mod complete;
pub mod endpoint;
pub mod error;
pub mod expiry;
pub mod home;
pub mod keys;
pub mod machine;
pub mod memory;
pub mod output;
pub mod project;
pub mod session;
mod slot;
pub mod tenancy;
