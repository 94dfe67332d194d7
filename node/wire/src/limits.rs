//! How much one end of a channel takes from the other.

/// Body bytes that the other end may send on one stream before we have used them.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Of that, what may be sent before the other end has asked for a body: see
/// [`Channel::open_to_ask`](crate::Channel::open_to_ask).
pub const EARLY_BYTES: u32 = 16 * 1024;
/// Body bytes that the other end may send on all streams before we have used them.
pub const CHANNEL_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Streams at a time.
pub const MAX_STREAMS: usize = 1024;
/// Largest piece of a body in one frame: larger pieces would let one stream delay the others.
pub const MAX_DATA_BYTES: usize = 32 * 1024;
/// Output that waits before the caller should hold its senders back, bytes. Answers that the other
/// end asks for and does not read must not fill our memory.
pub const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Credit is given back in pieces of at least this size, so that small reads do not become many
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
