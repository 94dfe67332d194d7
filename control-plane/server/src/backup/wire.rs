//! How a running control plane hands its store to the backup program, over a socket in the state
//! folder: a request line, a line of JSON that describes what follows, then each entry with the
//! lengths of its parts in front.

use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;

use casemate_control_store::{Contents, Entry, MAX_KEY_BYTES, MAX_VALUE_BYTES, Sink, StoreId};
use serde::{Deserialize, Serialize};

/// The request line.
pub(super) const ASK: &[u8] = b"casemate backup 1\n";
/// Longest line, bytes.
const MAX_LINE_BYTES: u64 = 4096;

/// The first line of the answer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    store: String,
    revision: u64,
    entries: u64,
}

/// Writes entries to a socket.
#[derive(Debug)]
pub(super) struct Sender(BufWriter<UnixStream>);

impl Sender {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(BufWriter::new(socket))
    }

    /// Flushes the buffer.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Sink for Sender {
    fn begin(&mut self, contents: &Contents) -> io::Result<()> {
        let header = Header {
            store: hex::encode(contents.id.0),
            revision: contents.revision,
            entries: contents.entries,
        };
        serde_json::to_writer(&mut self.0, &header)?;
        self.0.write_all(b"\n")
    }

    fn entry(&mut self, entry: Entry) -> io::Result<()> {
        let Entry {
            key,
            value,
            revision,
        } = entry;
        write_part(&mut self.0, key.as_bytes())?;
        self.0.write_all(&revision.to_be_bytes())?;
        write_part(&mut self.0, &value)
    }
}

/// Reads entries from a socket and passes them to `sink`.
pub(super) fn receive(socket: UnixStream, sink: &mut impl Sink) -> io::Result<()> {
    let mut from = BufReader::new(socket);
    let mut line = String::new();
    (&mut from).take(MAX_LINE_BYTES).read_line(&mut line)?;
    let header: Header = serde_json::from_str(&line)?;
    let id = hex::decode(&header.store).ok();
    let id = id.and_then(|id| id.try_into().ok());
    let contents = Contents {
        id: StoreId(id.ok_or_else(|| invalid("the store has no id"))?),
        revision: header.revision,
        entries: header.entries,
    };
    sink.begin(&contents)?;
    for _ in 0..contents.entries {
        let key = String::from_utf8(read_part(&mut from, MAX_KEY_BYTES)?);
        let key = key.map_err(|_| invalid("a key is not valid UTF-8"))?;
        let mut revision = [0; 8];
        from.read_exact(&mut revision)?;
        let revision = u64::from_be_bytes(revision);
        let value = read_part(&mut from, MAX_VALUE_BYTES)?;
        sink.entry(Entry {
            key,
            value,
            revision,
        })?;
    }
    Ok(())
}

fn write_part(to: &mut impl Write, part: &[u8]) -> io::Result<()> {
    let length = u32::try_from(part.len()).map_err(|_| invalid("a part is too long"))?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(part)
}

fn read_part(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > most {
        let message = format!("expected at most {most} bytes, got {length}");
        return Err(invalid(&message));
    }
    let mut part = vec![0; length];
    from.read_exact(&mut part)?;
    Ok(part)
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Taken(Vec<Entry>);

    impl Sink for Taken {
        fn begin(&mut self, contents: &Contents) -> io::Result<()> {
            assert_eq!((contents.id.0, contents.revision), ([7; 16], 9));
            Ok(())
        }

        fn entry(&mut self, entry: Entry) -> io::Result<()> {
            self.0.push(entry);
            Ok(())
        }
    }

    fn entries() -> Vec<Entry> {
        let entry = |(key, value): (&str, &[u8])| Entry {
            key: key.to_owned(),
            value: value.to_vec(),
            revision: 3,
        };
        let entries: [(&str, &[u8]); 3] = [("a", b"1"), ("b/\u{e9}", b""), ("c", &[0; 70_000])];
        entries.map(entry).into()
    }

    /// Sends the entries after a header that announces `announced` of them; returns the receiver's
    /// result.
    fn through(announced: u64) -> io::Result<Vec<Entry>> {
        let (one, other) = UnixStream::pair()?;
        let sending = std::thread::spawn(move || {
            let mut sender = Sender::new(one);
            let contents = Contents {
                id: StoreId([7; 16]),
                revision: 9,
                entries: announced,
            };
            sender.begin(&contents)?;
            entries()
                .into_iter()
                .try_for_each(|entry| sender.entry(entry))?;
            sender.end()
        });
        let mut taken = Taken::default();
        let received = receive(other, &mut taken);
        sending.join().unwrap().unwrap();
        received.map(|()| taken.0)
    }

    #[test]
    fn entries_are_received_completely_or_not_at_all() {
        assert_eq!(through(3).unwrap(), entries());
        let cut = through(4).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn lengths_are_bounded() {
        let too_long = [0xff; 8];
        let refused = read_part(&mut &too_long[..], MAX_VALUE_BYTES).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
