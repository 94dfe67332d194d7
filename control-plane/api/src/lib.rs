//! Types of the control plane's HTTPS API: requests and answers, access rules, errors, and limits.
//!
//! One table, [`endpoint::ENDPOINTS`], lists the endpoints and who may use them. The server routes
//! and authorises by it, and the OpenAPI document ([`openapi::document`]) is made from it, so the
//! two cannot differ.
//!
//! Clients of a control plane pin the key of its self-signed certificate (`OnlineKey::api`, or the
//! key in `public.json` before a fleet exists); no public certificate authority is involved.
//!
//! | module | holds |
//! |---|---|
//! | [`endpoint`], [`openapi`] | the endpoints and their access rules; the OpenAPI document |
//! | [`error`] | the error body and its stable codes |
//! | [`token`] | scopes and tokens |
//! | [`fleet`], [`tenant`], [`node`], [`image`] | requests and answers |
//! | [`log`], [`audit`] | records |
//! | [`limits`] | the limits |
#![forbid(unsafe_code)]

pub mod audit;
pub mod endpoint;
pub mod error;
pub mod fleet;
pub mod image;
pub mod limits;
pub mod log;
pub mod node;
pub mod openapi;
pub mod tenant;
pub mod token;
