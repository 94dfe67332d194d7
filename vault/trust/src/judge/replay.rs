//! The state again, from the rows that were written.

use super::{Judge, Memory, Objects, Refusal};
use crate::dsse::Envelope;
use crate::name::Name;

impl Judge {
    /// The judge that has written these rows. Each row carries what its owner calls it. The rows
    /// come in the order of their [`RowKey`](super::RowKey)s, in which each finds what it builds
    /// on, but images in the order in which they came.
    ///
    /// A row that is newer than the memory was judged before it was written, and the write was cut
    /// short before the memory: it is remembered now, and [`Judge::memory`] has to be written
    /// before anything is acknowledged. Nothing lower than the memory is taken, nor another
    /// statement of the same version; those rows come back with the refusal. A superseded root
    /// among them is only the next one's ancestor.
    ///
    /// Whoever could write rows of their own could write the memory as well: the store keeps them
    /// out.
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
