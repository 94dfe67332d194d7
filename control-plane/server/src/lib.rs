//! casemate-control: the control plane.
#![forbid(unsafe_code)]
