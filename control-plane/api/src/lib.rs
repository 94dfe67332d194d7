//! Types of the control plane's HTTPS API.
#![forbid(unsafe_code)]
