//! The control plane's revisioned store.
#![forbid(unsafe_code)]
