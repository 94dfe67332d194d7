//! Names, keys, statements and sealing: what everybody may know. It cannot open a secret.
//!
//! Everything here is a function of its arguments: time comes in as unix seconds, random bytes come in as a
//! [`Random`]. The same rules are kept by a node's vault, by the command line and by the control plane.
//!
//! | module | holds |
//! |---|---|
//! | [`name`], [`host`], [`path`] | the grammars, each parsed once |
//! | [`id`], [`key`], [`keyfile`] | digests, public and private keys, key files |
//! | [`dsse`] | signed envelopes |
//! | [`format`](mod@format) | formats of folders with state: what is newer than the program is refused |
//! | [`statement`] | what the root and the tenants say |
//! | [`note`] | who deployed a release, when, and what for |
//! | [`freshness`] | how long a manifest's credentials are used without its tenant's renewal |
//! | [`image`] | versions of machine images, and the root's word on one |
//! | [`ceiling`] | what a tenant may use and reach at most |
//! | [`release`], [`credential`], [`secret`] | digest-addressed objects that a manifest lists |
//! | [`authority`] | certificate authorities of single upstreams |
//! | [`seal`] | HPKE to a pool's or a node's X-Wing key |
//! | [`join`], [`lease`] | tokens, join requests, grants, liveness |
//! | [`revocation`] | the root's list of nodes that are members no longer |
//! | [`judge`] | what is accepted, given what was seen before |
#![forbid(unsafe_code)]

pub mod authority;
pub mod ceiling;
pub mod credential;
pub mod dsse;
pub mod format;
pub mod freshness;
pub mod host;
pub mod id;
pub mod image;
pub mod join;
pub mod judge;
pub mod key;
pub mod keyfile;
pub mod late;
pub mod lease;
pub mod name;
pub mod note;
pub mod path;
pub mod release;
pub mod revocation;
pub mod seal;
pub mod secret;
pub mod statement;

mod encoding;
mod payload;
mod scheme;
mod slot;
mod suite;

/// Fills a buffer with unpredictable bytes; the caller's program provides it.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);

/// Unix time in seconds.
pub type Seconds = u64;
