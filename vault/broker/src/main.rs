//! casemate-vault: judges statements and makes the outgoing calls of functions.
#![forbid(unsafe_code)]

fn main() {}
