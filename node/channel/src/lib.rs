//! The tokio driver of casemate-wire: one socket pair, one channel.
#![forbid(unsafe_code)]
