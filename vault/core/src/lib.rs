//! The vault's decisions: opening, egress policy, injection, scrubbing. Pure: time, random bytes
//! and network answers come in as arguments. Only `casemate-vault` links this crate, so only it can
//! open a secret.
//!
//! | module | decides |
//! |---|---|
//! | [`keys`] | the keys derived from the storage key and the node's seeds |
//! | [`opening`] | grants and secrets, opened |
//! | [`kept`] | a cache of opened secrets, sealed in memory |
//! | [`target`] | the meaning of a function's URL, or that it is ambiguous |
//! | [`egress`] | whether a call may go, and which credential goes with it |
//! | [`address`] | which resolved addresses may be dialled |
//! | [`slot`] | the header fields and the target that go on the wire |
//! | [`gunzip`] | an encoded body, decoded in steps of bounded work |
//! | [`scrub`] | the visible part of an answer |
//! | [`reflection`] | when a credential stops because answers hold it |
//! | [`liveness`] | whether the lease still holds |
#![forbid(unsafe_code)]

pub mod address;
pub mod egress;
pub mod gunzip;
pub mod kept;
pub mod keys;
pub mod liveness;
pub mod opening;
pub mod reflection;
pub mod scrub;
pub mod slot;
pub mod target;
