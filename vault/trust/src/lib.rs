//! Names, keys, statements and sealing: the public part, which cannot open a secret.
//!
//! Everything here is a pure function of its arguments: time comes in as Unix seconds, random bytes
//! as a [`Random`]. A node's vault, the command line and the control plane apply the same rules.
//!
//! | module | holds |
//! |---|---|
//! | [`name`], [`host`], [`path`] | the grammars, each parsed once |
//! | [`id`], [`key`], [`keyfile`] | digests, public and private keys, key files |
//! | [`dsse`] | signed envelopes |
//! | [`format`](mod@format) | formats of folders with state; a format newer than the program's is refused |
//! | [`statement`] | statements of the root and the tenants |
//! | [`note`] | who deployed a release, when, and what for |
//! | [`freshness`] | how long a manifest's credentials are used without its tenant's renewal |
//! | [`image`] | versions of machine images, and the root's statement about each |
//! | [`ceiling`] | what a tenant may use and reach at most |
//! | [`release`], [`credential`], [`secret`] | digest-addressed objects that a manifest lists |
//! | [`authority`] | certificate authorities of single upstreams |
//! | [`seal`] | HPKE to a pool's or a node's X-Wing key |
//! | [`join`], [`lease`] | tokens, join requests, grants, liveness |
//! | [`revocation`] | the root's list of nodes that are no longer members |
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
