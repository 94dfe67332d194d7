//! End-to-end, hostile and tidy tests, with the real programs.
#![forbid(unsafe_code)]
