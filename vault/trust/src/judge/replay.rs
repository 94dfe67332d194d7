//! Rebuilds the state from the written rows.

use super::{Judge, Memory, Objects, Refusal};
use crate::dsse::Envelope;
use crate::name::Name;

impl Judge {
    /// Rebuilds the judge that has written these rows. Each row carries its owner's label. The rows
    /// come in the order of their [`RowKey`](super::RowKey)s, in which each follows those that it
    /// depends on; images come in the order in which they were accepted.
    ///
    /// A row newer than the memory was judged before it was written, and the write was cut short
    /// before the memory: it is remembered now, and [`Judge::memory`] has to be written before
    /// anything is acknowledged. Rows lower than the memory, and other statements of the same
    /// version, are returned with their refusal. A superseded root among them is needed only as the
    /// next one's ancestor.
    ///
    /// An attacker who could write rows could write the memory as well: the store prevents that.
    pub fn replay<T>(
        memory: Memory,
        here: Option<Name>,
        rows: impl IntoIterator<Item = (T, Envelope)>,
        objects: Objects<'_>,
    ) -> (Self, Vec<(T, Refusal)>) {
        let mut judge = Self::remembering(memory, here);
        let mut refused = Vec::new();
        for (name, envelope) in rows {
            match judge.judge(&envelope, None, objects) {
                Ok(change) => judge.install(change),
                Err(refusal) => refused.push((name, refusal)),
            }
        }
        (judge, refused)
    }
}
