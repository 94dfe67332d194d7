//! casemate: the command line for operators and tenants.
#![forbid(unsafe_code)]

fn main() {}
