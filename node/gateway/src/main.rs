//! casemate-gateway: callers' HTTP in, channels to workers out.
#![forbid(unsafe_code)]

fn main() {}
