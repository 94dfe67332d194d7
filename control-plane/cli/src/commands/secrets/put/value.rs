//! Reads the value of a secret, and checks its length.

use std::io::{IsTerminal as _, Read};

use casemate_trust::name::Identifier;
use casemate_trust::secret::{MAX_VALUE_BYTES, SecretError, SecretValue};
use zeroize::Zeroizing;

use crate::args::SecretPut;
use crate::error::{Code, Error};
use crate::session::Context;

/// Values with fewer bytes than this cause a warning: a function that may call an upstream without
/// limit can guess the value by trial, and short values also occur in answers by chance, where they
/// are replaced.
const SHORT_VALUE_BYTES: usize = 16;
/// Values with fewer bytes than this are refused without `--short`: at a hundred thousand calls a
/// second, all values of six lower-case letters and digits can be tried out within seven hours, all
/// values of eight within a year.
const LEAST_VALUE_BYTES: usize = 8;

/// Refuses or warns about a value that a function could guess.
pub(super) fn check_length(
    cx: &Context,
    args: &SecretPut,
    name: &Identifier,
    value: &SecretValue,
) -> Result<(), Error> {
    let length = value.expose_secret().len();
    if length < LEAST_VALUE_BYTES && !args.short {
        return Err(Error::new(
            Code::SecretValue,
            format!(
                "the value of {name} has fewer than {LEAST_VALUE_BYTES} bytes, so a function can \
                 guess it"
            ),
            "use a longer key, or add `--short` to seal this one nevertheless",
        ));
    }
    if length < SHORT_VALUE_BYTES {
        cx.output.warn(&format!(
            "{name} has fewer than {SHORT_VALUE_BYTES} bytes: a function can guess the value by \
             calls to its host, and the vault also replaces equal bytes that occur in answers by \
             chance"
        ));
    }
    Ok(())
}

/// The value, from a file, standard input or the terminal.
pub(super) fn value(name: &Identifier, args: &SecretPut) -> Result<SecretValue, Error> {
    let bytes = match &args.from_file {
        Some(path) => {
            let cannot_read = |error| {
                Error::new(
                    Code::Input,
                    "cannot read the secret's file",
                    "check the path and the file's permissions",
                )
                .at(path.display())
                .source(error)
            };
            read(std::fs::File::open(path).map_err(cannot_read)?).map_err(cannot_read)?
        }
        None if std::io::stdin().is_terminal() => {
            let typed = rpassword::prompt_password(format!("Value of {name} (not shown): "));
            Zeroizing::new(typed.map_err(no_input)?.into_bytes())
        }
        None => read(std::io::stdin().lock()).map_err(no_input)?,
    };
    SecretValue::parse(bytes).map_err(cannot_seal)
}

fn read(from: impl Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // The buffer holds one byte more than a value with its line break may have, so that a longer
    // value is noticed. It never grows, because growing would leave copies of the secret.
    let most = MAX_VALUE_BYTES + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(most));
    from.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn no_input(error: std::io::Error) -> Error {
    Error::new(
        Code::Input,
        "the value could not be read",
        "give it on standard input or with `--from-file FILE`",
    )
    .source(error)
}

/// The error for a value or limits that cannot be sealed; the value is not in it.
pub(super) fn cannot_seal(error: SecretError) -> Error {
    let next = match error {
        SecretError::ValueByte { .. } => {
            "check the copied text: a key is one line. For several values use several secrets"
        }
        SecretError::ValueLength(0) => {
            "give the value on standard input or with `--from-file FILE`"
        }
        SecretError::ValueLength(_) => "a secret is a key or a password, not a document",
        _ => "correct the named mistake and run the command again",
    };
    Error::new(
        Code::SecretValue,
        "the value cannot be sealed as a secret",
        next,
    )
    .source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_over_the_limit_is_refused_without_reading_all_of_it() {
        let endless = std::io::repeat(b'x');
        let bytes = read(endless).unwrap();
        assert_eq!(bytes.len(), MAX_VALUE_BYTES + 3);
        let error = SecretValue::parse(bytes).map_err(cannot_seal).unwrap_err();
        assert_eq!(error.code(), Code::SecretValue);
    }

    #[test]
    fn what_cannot_be_sealed_is_not_shown() {
        let bytes = Zeroizing::new(b"hunter2\nhunter3".to_vec());
        let error = SecretValue::parse(bytes).map_err(cannot_seal).unwrap_err();
        let text = error.to_text();
        assert!(
            text.contains("LF at byte 7") && !text.contains("hunter"),
            "{text}"
        );
        assert_eq!(error.code().exit(), 65);
    }
}
