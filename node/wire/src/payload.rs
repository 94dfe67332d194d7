//! Reading the payload of a head: lengths, numbers and texts from the front.

use crate::error::HeadError;

/// `tchar` of RFC 9110, section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads values from the front of a payload.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], HeadError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(HeadError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn text(&mut self, length: usize) -> Result<&'a str, HeadError> {
        std::str::from_utf8(self.take(length)?).map_err(|_| HeadError::Characters)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, HeadError> {
        self.take(2)
            .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, HeadError> {
        self.take(4)
            .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(crate) fn finish(self) -> Result<(), HeadError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(HeadError::Length)
        }
    }
}
