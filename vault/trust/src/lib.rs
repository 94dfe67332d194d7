//! Names, keys, statements and sealing: what everybody may know. It cannot open a secret.
#![forbid(unsafe_code)]
