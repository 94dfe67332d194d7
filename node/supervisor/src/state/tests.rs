//! The state machine alone.
