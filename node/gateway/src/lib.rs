//! The gateway: callers' HTTP comes in, channels to workers go out.
//!
//! It reads hostile bytes from the internet, so what it decides stands apart from what it does: [`strict`], [`frames`],
//! [`expiry`], [`host`], [`target`], [`route`], [`hops`], [`fields`], [`cookies`], [`places`], [`requests`], [`pool`] and [`answer`]
//! know no socket and no clock. Around them: [`start`] (bind, read, wall in), [`admission`] (places for connections),
//! [`watched`] (bytes), [`serve`] (connections), [`exchange`] (one request), [`upload`] and [`body`] (bodies),
//! [`renew`] (certificates), [`health`] (probes), [`supervise`] (the control channel), [`drain`] (the end), [`run`] (all of it).
//!
//! A connection passes: a place for its network. A request passes: a framing with one reading, which host is it, is there
//! a route, the perimeter (method, path, size), hops, a place for its tenant, a worker with room, its channel.
//! No request is begun twice: once a worker has begun a request, its caller gets that worker's answer or is told why there
//! is none. A request that its worker has not begun, because the worker ends, goes to another worker.
//!
//! Not served: `CONNECT`, and upgrades to WebSocket (501 `not_supported`); other offers to upgrade are ignored, as HTTP
//! permits.
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
