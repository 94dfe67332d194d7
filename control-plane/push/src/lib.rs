//! The push protocol between control plane and node. Sans-IO, both ends.
#![forbid(unsafe_code)]
