//! The gateway: callers' HTTP comes in, and channels lead to workers.
//!
//! It parses hostile bytes from the internet, so its pure parts are separate: [`strict`],
//! [`frames`], [`expiry`], [`host`], [`target`], [`route`], [`hops`], [`fields`], [`cookies`],
//! [`places`], [`requests`], [`pool`] and [`answer`] use no socket and no clock. The shells around
//! them: [`start`] (bind, read, close the sandbox), [`admission`] (slots for connections),
//! [`watched`] (bytes), [`serve`] (connections), [`exchange`] (one request), [`upload`] and
//! [`body`] (bodies), [`renew`] (certificates), [`health`] (probes), [`supervise`] (the control
//! channel), [`drain`] (the end), [`run`] (the whole life).
//!
//! A connection needs a slot of its source network. A request then passes, in this order:
//! unambiguous framing, its host, its route, the perimeter (method, path, size), the count of hops,
//! a slot of its tenant, and a worker with a free slot. No request is begun twice: once a worker
//! has begun a request, its caller gets that worker's answer or an error. A request whose worker
//! ends before it has begun goes to another worker.
//!
//! `CONNECT` and upgrades to WebSocket are not served (501 `not_supported`); other offers to
//! upgrade are ignored, as HTTP permits.
#![forbid(unsafe_code)]

pub mod admission;
pub mod answer;
pub mod body;
pub mod connection;
pub mod cookies;
pub mod drain;
pub mod exchange;
pub mod expiry;
pub mod fields;
pub mod frames;
pub mod health;
pub mod hops;
pub mod host;
pub mod places;
pub mod pool;
pub mod renew;
pub mod requests;
pub mod route;
pub mod run;
pub mod serve;
pub mod start;
pub mod strict;
pub mod supervise;
pub mod target;
pub mod tls;
pub mod upload;
pub mod watched;
pub mod worker;
pub mod workers;
