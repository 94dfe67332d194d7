//! Adds sections to a PE file (Microsoft's "PE Format"), as far as a boot stub needs it.
//!
//! The offsets are computed from the file, because the fixed offsets in the stub's manual leave
//! only 16 MiB for the kernel.

use crate::Error;

const DOS_POINTER: usize = 0x3c;
const SIGNATURE: &[u8] = b"PE\0\0";
const COFF_HEADER_BYTES: usize = 20;
const SECTION_HEADER_BYTES: usize = 40;
/// PE32+, for 64-bit machines.
const OPTIONAL_MAGIC: u16 = 0x20b;
/// Offsets in the optional header.
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const SIZE_OF_IMAGE: usize = 56;
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;
const OPTIONAL_HEADER_LEAST: usize = 112;
/// Section flags: initialised data, read-only.
const CHARACTERISTICS: u32 = 0x4000_0040;
/// No boot stub has a larger alignment.
const MAX_ALIGNMENT: u32 = 1 << 20;

/// A section to add.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'a> {
    /// At most eight bytes.
    pub(crate) name: &'a str,
    pub(crate) bytes: &'a [u8],
}

/// Positions of the headers in a PE file.
struct Layout {
    coff: usize,
    optional: usize,
    table: usize,
    count: usize,
    section_alignment: u32,
    file_alignment: u32,
    headers: usize,
}

/// Appends sections to the file, in this order. A signature or checksum of the file becomes
/// invalid.
pub(crate) fn add_sections(file: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>, Error> {
    let layout = Layout::of(file)?;
    let room = layout.headers.saturating_sub(layout.table) / SECTION_HEADER_BYTES;
    if layout.count + sections.len() > room {
        return Err(Error::Stub(format!(
            "expected room for {} sections in its header, got {room}",
            layout.count + sections.len()
        )));
    }
    let mut out = file.to_vec();
    let mut address = layout.end_in_memory(file)?;
    for (number, section) in sections.iter().enumerate() {
        let offset = align(out.len() as u64, layout.file_alignment);
        out.resize(to_usize(offset)?, 0);
        out.extend_from_slice(section.bytes);
        let padded = align(out.len() as u64, layout.file_alignment);
        out.resize(to_usize(padded)?, 0);
        let at = layout.table + (layout.count + number) * SECTION_HEADER_BYTES;
        let mut name = [0; 8];
        let short = name.get_mut(..section.name.len());
        short
            .ok_or_else(|| Error::Stub(format!("{} is too long for a section", section.name)))?
            .copy_from_slice(section.name.as_bytes());
        let size = to_u32(section.bytes.len() as u64)?;
        out[at..at + 8].copy_from_slice(&name);
        put(&mut out, at + 8, size);
        put(&mut out, at + 12, to_u32(address)?);
        put(&mut out, at + 16, to_u32(padded - offset)?);
        put(&mut out, at + 20, to_u32(offset)?);
        out[at + 24..at + 36].fill(0);
        put(&mut out, at + 36, CHARACTERISTICS);
        address = align(address + u64::from(size), layout.section_alignment);
    }
    let count = u16::try_from(layout.count + sections.len());
    let count = count.map_err(|_| Error::Stub("too many sections".into()))?;
    out[layout.coff + 2..layout.coff + 4].copy_from_slice(&count.to_le_bytes());
    put(&mut out, layout.optional + SIZE_OF_IMAGE, to_u32(address)?);
    put(&mut out, layout.optional + CHECKSUM, 0);
    Ok(out)
}

impl Layout {
    fn of(file: &[u8]) -> Result<Self, Error> {
        let short = || Error::Stub("it ends within its headers".into());
        let long = |at: usize| read(file, at).ok_or_else(short);
        let start = long(DOS_POINTER)? as usize;
        if !file.starts_with(b"MZ") || file.get(start..start.saturating_add(4)) != Some(SIGNATURE) {
            return Err(Error::Stub("expected a PE file".into()));
        }
        let coff = start + SIGNATURE.len();
        let count = long(coff)? >> 16;
        let optional = coff + COFF_HEADER_BYTES;
        let optional_bytes = (long(coff + 16)? & 0xffff) as usize;
        if optional_bytes < OPTIONAL_HEADER_LEAST || long(optional)? as u16 != OPTIONAL_MAGIC {
            return Err(Error::Stub("expected PE32+, for 64-bit machines".into()));
        }
        let alignment = |at| match long(optional + at)? {
            value if value.is_power_of_two() && value <= MAX_ALIGNMENT => Ok(value),
            value => Err(Error::Stub(format!("an alignment of {value}"))),
        };
        let layout = Self {
            coff,
            optional,
            table: optional + optional_bytes,
            count: count as usize,
            section_alignment: alignment(SECTION_ALIGNMENT)?,
            file_alignment: alignment(FILE_ALIGNMENT)?,
            headers: long(optional + SIZE_OF_HEADERS)? as usize,
        };
        if layout.headers > file.len()
            || layout.table + layout.count * SECTION_HEADER_BYTES > layout.headers
        {
            return Err(short());
        }
        Ok(layout)
    }

    /// The first address after all sections in memory.
    fn end_in_memory(&self, file: &[u8]) -> Result<u64, Error> {
        let mut end = self.headers as u64;
        for number in 0..self.count {
            let at = self.table + number * SECTION_HEADER_BYTES;
            let field = |offset| read(file, at + offset).map(u64::from);
            let (Some(virtual_size), Some(address), Some(raw_size)) =
                (field(8), field(12), field(16))
            else {
                return Err(Error::Stub("it ends within its section table".into()));
            };
            end = end.max(address + virtual_size.max(raw_size));
        }
        Ok(align(end, self.section_alignment))
    }
}

/// Reads four bytes, little-endian.
fn read(file: &[u8], at: usize) -> Option<u32> {
    let bytes = file.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn put(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn align(value: u64, to: u32) -> u64 {
    value.next_multiple_of(u64::from(to))
}

fn to_u32(value: u64) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| Error::TooLarge {
        what: "a boot file".into(),
        max: u64::from(u32::MAX),
        got: value,
    })
}

fn to_usize(value: u64) -> Result<usize, Error> {
    to_u32(value).map(|value| value as usize)
}

#[cfg(test)]
pub(crate) mod tests {
    use object::{Object as _, ObjectSection as _};

    use super::*;

    /// A file with headers and one section.
    pub(crate) fn stub() -> Vec<u8> {
        let mut file = vec![0; 0x400];
        file[..2].copy_from_slice(b"MZ");
        put(&mut file, DOS_POINTER, 0x80);
        file[0x80..0x84].copy_from_slice(SIGNATURE);
        let coff = 0x84;
        file[coff..coff + 2].copy_from_slice(&0x8664_u16.to_le_bytes());
        file[coff + 2..coff + 4].copy_from_slice(&1_u16.to_le_bytes());
        file[coff + 16..coff + 18].copy_from_slice(&240_u16.to_le_bytes());
        let optional = coff + COFF_HEADER_BYTES;
        file[optional..optional + 2].copy_from_slice(&OPTIONAL_MAGIC.to_le_bytes());
        put(&mut file, optional + SECTION_ALIGNMENT, 0x1000);
        put(&mut file, optional + FILE_ALIGNMENT, 0x200);
        put(&mut file, optional + SIZE_OF_IMAGE, 0x2000);
        put(&mut file, optional + SIZE_OF_HEADERS, 0x400);
        put(&mut file, optional + 108, 16);
        let table = optional + 240;
        file[table..table + 5].copy_from_slice(b".text");
        put(&mut file, table + 8, 5);
        put(&mut file, table + 12, 0x1000);
        put(&mut file, table + 16, 0x200);
        put(&mut file, table + 20, 0x400);
        file.extend([7; 0x200]);
        file
    }

    #[test]
    fn sections_are_where_their_headers_say() {
        let large = vec![3; 20 << 20];
        let added = [
            Section {
                name: ".cmdline",
                bytes: b"quiet",
            },
            Section {
                name: ".initrd",
                bytes: &large,
            },
            Section {
                name: ".linux",
                bytes: b"MZkernel",
            },
        ];
        let file = add_sections(&stub(), &added).unwrap();
        let parsed = object::File::parse(&file[..]).unwrap();
        let mut last = 0;
        for section in &added {
            let found = parsed.section_by_name(section.name).unwrap();
            assert_eq!(&found.data().unwrap()[..section.bytes.len()], section.bytes);
            assert_eq!(found.size(), section.bytes.len() as u64);
            assert!(found.address() >= last && found.address().is_multiple_of(0x1000));
            last = found.address() + found.size();
        }
        let image = read(&file, 0x84 + COFF_HEADER_BYTES + SIZE_OF_IMAGE).unwrap();
        assert!(u64::from(image) >= last && image.is_multiple_of(0x1000));
    }

    #[test]
    fn what_is_no_stub_is_refused() {
        let whole = stub();
        let many: Vec<_> = (0..20)
            .map(|_| Section {
                name: ".x",
                bytes: b"",
            })
            .collect();
        assert!(matches!(add_sections(&whole, &many), Err(Error::Stub(_))));
        let long = [Section {
            name: ".toolongname",
            bytes: b"",
        }];
        assert!(matches!(add_sections(&whole, &long), Err(Error::Stub(_))));
        for cut in 0..0x400 {
            assert!(
                matches!(add_sections(&whole[..cut], &[]), Err(Error::Stub(_))),
                "{cut}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_does_harm(changes in proptest::collection::vec((0_usize..0x400, proptest::num::u8::ANY), 1..8)) {
            let mut file = stub();
            for (at, to) in changes {
                file[at] = to;
            }
            let _ = add_sections(&file, &[Section { name: ".linux", bytes: b"kernel" }]);
        }
    }
}
