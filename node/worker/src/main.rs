//! casemate-worker: one isolate, one function.


fn main() {}
