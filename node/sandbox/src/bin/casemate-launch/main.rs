//! casemate-launch: the only privileged program of a node.
fn main() {}
