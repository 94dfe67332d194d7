//! casemate-node: the supervisor of a node.
#![forbid(unsafe_code)]

fn main() {}
