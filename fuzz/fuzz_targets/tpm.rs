//! A TPM, or whoever is on the wires to it, that answers anything.
#![no_main]

use std::io::{self, Read, Write};

use libfuzzer_sys::fuzz_target;

#[path = "../../images/init/src/tpm/mod.rs"]
#[allow(dead_code, reason = "init needs more of it")]
mod tpm;

use tpm::Tpm;

/// Answers each command with the next of these, which may come in pieces.
struct Wire {
    answers: std::vec::IntoIter<Vec<u8>>,
    now: Vec<u8>,
    commands: usize,
}

impl Write for Wire {
    fn write(&mut self, command: &[u8]) -> io::Result<usize> {
        let size = command.get(2..6).and_then(|size| size.try_into().ok());
        let size = size
            .map(u32::from_be_bytes)
            .expect("a command has a header");
        assert_eq!(
            size as usize,
            command.len(),
            "a command of ours has its length"
        );
        self.commands += 1;
        assert!(self.commands < 100, "no end of commands");
        self.now = self.answers.next().unwrap_or_default();
        Ok(command.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Wire {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let length = self.now.len().min(to.len()).min(700);
        to[..length].copy_from_slice(&self.now[..length]);
        self.now.drain(..length);
        Ok(length)
    }
}

/// A response that holds these bytes: with a right header most of the time.
fn response(bytes: &[u8]) -> Vec<u8> {
    let Some((kind, rest)) = bytes.split_first() else {
        return Vec::new();
    };
    if *kind == 0 {
        return rest.to_vec();
    }
    let tag: u16 = if kind % 2 == 0 { 0x8002 } else { 0x8001 };
    // A handle that is not there: then the key of the storage hierarchy is made.
    let code: u32 = if *kind == 1 { 0x18b } else { 0 };
    let size = u32::try_from(10 + rest.len()).expect("a short input");
    [
        &tag.to_be_bytes()[..],
        &size.to_be_bytes(),
        &code.to_be_bytes(),
        rest,
    ]
    .concat()
}

fuzz_target!(|input: (u8, Vec<&[u8]>)| {
    let (what, answers) = input;
    let answers: Vec<_> = answers.into_iter().map(response).collect();
    let wire = Wire {
        answers: answers.into_iter(),
        now: Vec::new(),
        commands: 0,
    };
    let mut tpm = Tpm::over(Box::new(wire));
    match what % 6 {
        0 => drop(tpm.pcrs()),
        1 => drop(tpm.is_owned()),
        // Nobody but the TPM can make the proof of the last answer: its key was never on the wire.
        2 => assert!(tpm.set_owner(b"", b"new").is_err(), "owned by nobody"),
        3 => assert!(
            tpm.seal(b"", b"secret", &[7; 32]).is_err(),
            "sealed by nobody"
        ),
        4 => drop(tpm.end_opening()),
        _ => drop(tpm.floor()),
    }
});
