//! Types of the control plane's HTTPS API: what travels, who may ask, which errors come back,
//! within which limits.
//!
//! One table, [`endpoint::ENDPOINTS`], says what there is and who may ask. The server routes and
//! authorises by it, the OpenAPI document ([`openapi::document`]) is made from it, so neither can
//! say something else than the other.
//!
//! Whoever talks to a control plane pins the key of its self-signed certificate (`OnlineKey::api`,
//! or the key in `public.json` before a fleet exists); no public certificate authority takes part.
//!
//! | module | holds |
//! |---|---|
//! | [`endpoint`], [`openapi`] | what can be asked, by whom; the document |
//! | [`error`] | the error body and its stable codes |
//! | [`token`] | scopes and tokens |
//! | [`fleet`], [`tenant`], [`node`], [`image`] | what is asked and answered |
//! | [`log`], [`audit`] | records |
//! | [`limits`] | how much of each |
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
