//! The cases: each module measures one group of them.

pub(crate) mod calls;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod micro;
pub(crate) mod resync;
pub(crate) mod scale;
pub(crate) mod start;
