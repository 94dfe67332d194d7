//! How much one end of a channel takes from the other.

/// Body bytes that the other end may send on one stream before we have consumed them.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Of these, the bytes that may be sent before the accepting end has asked for a body: see
/// [`Channel::open_to_ask`](crate::Channel::open_to_ask).
pub const EARLY_BYTES: u32 = 16 * 1024;
/// Body bytes that the other end may send on all streams before we have consumed them.
pub const CHANNEL_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Most streams at a time.
pub const MAX_STREAMS: usize = 1024;
/// Largest piece of a body in one frame: larger pieces would let one stream delay the others.
pub const MAX_DATA_BYTES: usize = 32 * 1024;
/// Waiting output, bytes, at which the caller should hold its senders back. Answers that the other
/// end requests and does not read must not fill our memory.
pub const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Credit is returned in pieces of at least this size, so that small reads do not cause many
/// frames.
pub(crate) const WINDOW_UPDATE_BYTES: u32 = 64 * 1024;
/// Most header fields in a head.
pub const MAX_FIELDS: usize = 256;
/// Longest field name, bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest method, bytes.
pub const MAX_METHOD_BYTES: usize = 24;
/// Longest target, bytes.
pub const MAX_TARGET_BYTES: usize = 16 * 1024;
