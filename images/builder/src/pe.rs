//! Adds sections to a PE file (Microsoft's "PE Format"), as far as a boot stub needs it.
//!
//! The offsets are computed from the file, because the fixed offsets in the stub's manual leave
//! only 16 MiB for the kernel. `object` writes whole PE files, and has no way to add to one: here
//! its types read and write the headers.

use object::LittleEndian as LE;
use object::pe::{
    IMAGE_SCN_CNT_INITIALIZED_DATA, IMAGE_SCN_MEM_READ, IMAGE_SIZEOF_SECTION_HEADER,
    ImageDosHeader, ImageNtHeaders64, ImageSectionHeader, SectionFlags,
};
use object::pod::{bytes_of, from_bytes_mut};
use object::read::pe::ImageNtHeaders as _;

use crate::Error;

/// Initialised data, read-only.
const CHARACTERISTICS: SectionFlags =
    SectionFlags(IMAGE_SCN_CNT_INITIALIZED_DATA.0 | IMAGE_SCN_MEM_READ.0);
/// No boot stub has a larger alignment.
const MAX_ALIGNMENT: u32 = 1 << 20;

/// A section to add.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'a> {
    /// At most eight bytes.
    pub(crate) name: &'a str,
    pub(crate) bytes: &'a [u8],
}

/// Where the headers of a PE file are, and what they say.
struct Layout {
    /// Offset of the PE headers.
    headers: usize,
    /// Offset of the section table.
    table: usize,
    count: usize,
    /// Number of sections for which the table has room.
    room: usize,
    section_alignment: u32,
    file_alignment: u32,
    /// The first address after all sections in memory.
    end: u64,
}

/// Appends sections to the file, in this order. A signature or checksum of the file becomes
/// invalid.
pub(crate) fn add_sections(file: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>, Error> {
    let layout = Layout::of(file)?;
    let count = layout.count + sections.len();
    if count > layout.room {
        return Err(Error::Stub(format!(
            "expected room for {count} sections in its header, got {}",
            layout.room
        )));
    }
    let mut out = file.to_vec();
    let mut address = layout.end;
    let mut at = layout.table + layout.count * IMAGE_SIZEOF_SECTION_HEADER;
    for section in sections {
        let offset = align(out.len() as u64, layout.file_alignment);
        out.resize(to_usize(offset)?, 0);
        out.extend_from_slice(section.bytes);
        let padded = align(out.len() as u64, layout.file_alignment);
        out.resize(to_usize(padded)?, 0);
        let size = to_u32(section.bytes.len() as u64)?;
        let header = ImageSectionHeader {
            name: short(section.name)?,
            virtual_size: object::U32::new(LE, size),
            virtual_address: object::U32::new(LE, to_u32(address)?),
            size_of_raw_data: object::U32::new(LE, to_u32(padded - offset)?),
            pointer_to_raw_data: object::U32::new(LE, to_u32(offset)?),
            pointer_to_relocations: object::U32::default(),
            pointer_to_linenumbers: object::U32::default(),
            number_of_relocations: object::U16::default(),
            number_of_linenumbers: object::U16::default(),
            characteristics: object::U32::new(LE, CHARACTERISTICS),
        };
        out[at..at + IMAGE_SIZEOF_SECTION_HEADER].copy_from_slice(bytes_of(&header));
        at += IMAGE_SIZEOF_SECTION_HEADER;
        address = align(address + u64::from(size), layout.section_alignment);
    }
    let count = u16::try_from(count).map_err(|_| Error::Stub("too many sections".into()))?;
    let (headers, _) = from_bytes_mut::<ImageNtHeaders64>(&mut out[layout.headers..])
        .map_err(|()| Error::Stub("it ends within its headers".into()))?;
    headers.file_header.number_of_sections.set(LE, count);
    let optional = &mut headers.optional_header;
    optional.size_of_image.set(LE, to_u32(address)?);
    optional.check_sum.set(LE, 0);
    Ok(out)
}

impl Layout {
    fn of(file: &[u8]) -> Result<Self, Error> {
        let invalid = |error: object::Error| {
            Error::Stub(format!(
                "expected a PE32+ file, for 64-bit machines: {error}"
            ))
        };
        let headers = ImageDosHeader::parse(file).map_err(invalid)?;
        let headers = u64::from(headers.nt_headers_offset());
        let mut after = headers;
        let (nt, _) = ImageNtHeaders64::parse(file, &mut after).map_err(invalid)?;
        let sections = nt.sections(file, after).map_err(invalid)?;
        let optional = &nt.optional_header;
        let alignment = |value: u32| {
            if value.is_power_of_two() && value <= MAX_ALIGNMENT {
                Ok(value)
            } else {
                Err(Error::Stub(format!("an alignment of {value}")))
            }
        };
        let section_alignment = alignment(optional.section_alignment.get(LE))?;
        let size = optional.size_of_headers.get(LE);
        let end = sections.iter().fold(u64::from(size), |end, section| {
            let of_section = section.virtual_size.get(LE);
            let of_section = of_section.max(section.size_of_raw_data.get(LE));
            end.max(u64::from(section.virtual_address.get(LE)) + u64::from(of_section))
        });
        let (size, table) = (to_usize(size.into())?, to_usize(after)?);
        let layout = Self {
            headers: to_usize(headers)?,
            table,
            count: sections.len(),
            room: size.saturating_sub(table) / IMAGE_SIZEOF_SECTION_HEADER,
            section_alignment,
            file_alignment: alignment(optional.file_alignment.get(LE))?,
            end: align(end, section_alignment),
        };
        if size > file.len() || layout.count > layout.room {
            return Err(Error::Stub("it ends within its headers".into()));
        }
        Ok(layout)
    }
}

/// A name in the eight bytes of a section header.
fn short(name: &str) -> Result<[u8; 8], Error> {
    let mut short = [0; 8];
    short
        .get_mut(..name.len())
        .ok_or_else(|| Error::Stub(format!("{name} is too long for a section")))?
        .copy_from_slice(name.as_bytes());
    Ok(short)
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
    use object::pe::{
        IMAGE_DOS_SIGNATURE, IMAGE_FILE_MACHINE_AMD64, IMAGE_NT_OPTIONAL_HDR64_MAGIC,
        IMAGE_NT_SIGNATURE,
    };
    use object::{Object as _, ObjectSection as _};

    use super::*;

    /// Offset of the PE headers in [`stub`].
    const HEADERS: usize = 0x80;

    /// A file with headers and one section.
    pub(crate) fn stub() -> Vec<u8> {
        let mut file = vec![0; 0x400];
        let (dos, _) = from_bytes_mut::<ImageDosHeader>(&mut file).unwrap();
        dos.e_magic.set(LE, IMAGE_DOS_SIGNATURE);
        dos.e_lfanew.set(LE, HEADERS as u32);
        let (nt, table) = from_bytes_mut::<ImageNtHeaders64>(&mut file[HEADERS..]).unwrap();
        nt.signature.set(LE, IMAGE_NT_SIGNATURE);
        nt.file_header.machine.set(LE, IMAGE_FILE_MACHINE_AMD64);
        nt.file_header.number_of_sections.set(LE, 1);
        nt.file_header.size_of_optional_header.set(LE, 240);
        let optional = &mut nt.optional_header;
        optional.magic.set(LE, IMAGE_NT_OPTIONAL_HDR64_MAGIC);
        optional.section_alignment.set(LE, 0x1000);
        optional.file_alignment.set(LE, 0x200);
        optional.size_of_image.set(LE, 0x2000);
        optional.size_of_headers.set(LE, 0x400);
        optional.number_of_rva_and_sizes.set(LE, 16);
        let (text, _) = from_bytes_mut::<ImageSectionHeader>(&mut table[16 * 8..]).unwrap();
        text.name = short(".text").unwrap();
        text.virtual_size.set(LE, 5);
        text.virtual_address.set(LE, 0x1000);
        text.size_of_raw_data.set(LE, 0x200);
        text.pointer_to_raw_data.set(LE, 0x400);
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
        let (nt, _) = ImageNtHeaders64::parse(&file[..], &mut (HEADERS as u64)).unwrap();
        let image = nt.optional_header.size_of_image.get(LE);
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
