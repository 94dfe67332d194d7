//! Confirmation of irreversible commands: at a terminal by typing the name, otherwise with `--yes`.

use std::io::{IsTerminal as _, Write as _};

use crate::error::{Code, Error};

/// Returns if `yes` is set, or if the name is typed.
///
/// # Errors
/// Another name was typed, or there is no terminal.
pub(super) fn confirm(yes: bool, doing: &str, name: &str) -> Result<(), Error> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(
            Code::Usage,
            format!(
                "this would {doing} {name}, and there is no terminal to confirm it; nothing was \
                 changed"
            ),
            "add `--yes` where there is no terminal",
        ));
    }
    let unreadable =
        |error| Error::new(Code::Io, "no answer could be read", "add `--yes`").source(error);
    let mut err = anstream::stderr().lock();
    write!(err, "To {doing} {name}, type that name: ").map_err(unreadable)?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(unreadable)?;
    if answer.trim() == name {
        return Ok(());
    }
    Err(Error::new(
        Code::Usage,
        "another name was typed; nothing was changed",
        format!("type {name}, or add `--yes`"),
    ))
}
