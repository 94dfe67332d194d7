//! Errors of a command line that cannot be parsed. No error repeats text that was typed around a
//! secret.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::args;
use crate::error::{Code, Error};

/// Whether to suppress the parser's own messages, which repeat the typed text: any word may be a
/// secret's value. The command is searched for as a word at any position, because a command line
/// that cannot be parsed has no reliable parts.
pub(super) fn may_hold_a_secret(typed: &[OsString]) -> bool {
    typed.iter().any(|word| word == "secret" || word == "login")
}

/// Whether the parser shows help because nothing was typed after a command.
pub(super) fn is_help(kind: ErrorKind) -> bool {
    kind == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// The error for a command line with secrets: its text comes from the parser's list of arguments,
/// never from the typed text.
pub(super) fn not_repeated(error: &clap::Error, typed: &[OsString]) -> Error {
    let mut root = args::command();
    root.build();
    let command = meant(&root, typed);
    let mut lines = vec![command.clone().render_usage().to_string()];
    let stray = matches!(
        error.kind(),
        ErrorKind::UnknownArgument | ErrorKind::TooManyValues
    );
    if stray && command.get_name() == "put" {
        return value_in_argv().lines(lines);
    }
    let named: Vec<String> = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => vec![name.clone()],
        Some(ContextValue::Strings(names)) => names.clone(),
        _ => Vec::new(),
    };
    let (what, problem) = match error.kind() {
        ErrorKind::MissingRequiredArgument => ("an argument is missing", "missing"),
        ErrorKind::ArgumentConflict => (
            "arguments exclude each other",
            "cannot be used with another",
        ),
        ErrorKind::InvalidSubcommand => ("the command does not exist", "invalid"),
        ErrorKind::MissingSubcommand => ("a command is missing", "missing"),
        ErrorKind::UnknownArgument => ("an option is unknown", "unknown"),
        _ => ("an argument has an invalid value", "invalid"),
    };
    let declared = command
        .get_arguments()
        .map(|argument| (argument.to_string(), argument));
    let declared: Vec<_> = declared.filter(|(name, _)| named.contains(name)).collect();
    lines.extend(declared.into_iter().map(|(name, argument)| {
        let help = argument.get_help().map(|help| format!(" ({help})"));
        format!("{name}: {problem}{}", help.unwrap_or_default())
    }));
    if command.has_subcommands() {
        let names = command.get_subcommands().map(clap::Command::get_name);
        lines.push(format!(
            "commands: {}",
            names.collect::<Vec<_>>().join(", ")
        ));
    }
    Error::new(
        Code::Usage,
        format!("{what}; the typed text is not repeated, because it may contain a secret"),
        "give values on standard input or in a file; replace a value that was typed into the \
         command line. See `--help`",
    )
    .lines(lines)
}

/// The command that the typed words select; words that are not names of commands are skipped.
fn meant<'a>(root: &'a clap::Command, typed: &[OsString]) -> &'a clap::Command {
    let mut command = root;
    for word in typed.iter().skip(1) {
        command = word
            .to_str()
            .and_then(|word| command.find_subcommand(word))
            .unwrap_or(command);
    }
    command
}

/// The error for a value that was typed into the command line.
pub(super) fn value_in_argv() -> Error {
    Error::new(
        Code::Usage,
        "a secret's value does not belong on the command line, where everybody on this machine can \
         read it",
        "give it on standard input, with `--from-file FILE`, or type it when asked: \
         `casemate secret put NAME --host HOST`. Change the value if this machine is not yours \
         alone",
    )
}

/// The parser's own message, for a line without secrets.
pub(super) fn usage(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let mut lines = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or("the command line cannot be parsed");
    let what = what.strip_prefix("error: ").unwrap_or(what);
    Error::new(Code::Usage, what, "see `casemate COMMAND --help`")
        .lines(lines.map(str::to_owned).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn what_was_typed_around_a_secret_is_never_repeated() {
        for line in [
            "casemate secret put KEY hunter2 --host a.test",
            "casemate secret put KEY --host a.test --valeu hunter2",
            "casemate secret put KEY=hunter2 --host a.test",
            "casemate secret put KEY --host a.test=hunter2",
            "casemate secret put KEY --host a.test --method hunter2",
            "casemate secret put KEY --host a.test --wait hunter2",
            "casemate secret put KEY --host a.test --slot hunter2",
            "casemate secret --json put KEY hunter2 --host a.test",
            "casemate secret KEY=hunter2",
            "casemate secret rm KEY=hunter2",
            "casemate --jsn secret put KEY hunter2",
            "casemate secret put --host=a.test --from-file --json=hunter2",
            "casemate login https://a.test hunter2",
        ] {
            let typed = words(line);
            let error = args::command().try_get_matches_from(&typed).unwrap_err();
            assert!(
                may_hold_a_secret(&typed) && !is_help(error.kind()),
                "{line}"
            );
            let told = not_repeated(&error, &typed);
            let all = told.to_text() + &told.to_json().to_string();
            assert!(!all.contains("hunter2"), "{line}: {all}");
        }
    }

    #[test]
    fn the_argument_is_named() {
        for (line, named) in [
            (
                "casemate secret put KEY=hunter2 --host a.test",
                "[NAME]: invalid (Name of the secret, such as STRIPE_KEY)",
            ),
            ("casemate secret put KEY", "Usage: casemate secret put"),
            ("casemate secret get KEY", "commands: put, list, rm"),
            ("casemate secret list KEY", "Usage: casemate secret list"),
            (
                "casemate secret put KEY hunter2 --host a.test",
                "does not belong on the command line",
            ),
            ("casemate secret put KEY", "--host <HOST[:PORT]>: missing"),
            (
                "casemate secret put KEY --host a.test --wait x",
                "--wait <SECONDS>: invalid",
            ),
        ] {
            let typed = words(line);
            let error = args::command().try_get_matches_from(&typed).unwrap_err();
            let text = not_repeated(&error, &typed).to_text();
            assert!(text.contains(named), "{line}: {text}");
        }
    }
}
