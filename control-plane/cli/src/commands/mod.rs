//! What the commands do.

mod deploy;
mod fleet;
mod init;
mod login;
mod logs;
mod nodes;
mod pools;
mod secrets;
mod status;
mod tenants;
mod tokens;

use std::ffi::OsString;
use std::path::Path;

use clap::FromArgMatches as _;
use clap::error::ErrorKind;

use crate::args::{self, Cli, Command};
use crate::error::{Code, Error};
use crate::home::{Home, write_private};
use crate::keys::Passphrases;
use crate::output::Output;
use crate::session::Context;

/// Run what was typed; the exit code.
pub async fn run(typed: Vec<OsString>) -> u8 {
    let json = typed.iter().any(|word| word == "--json");
    let parsed = args::command()
        .try_get_matches_from(&typed)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // Help and version; a closed pipe is nothing to complain about.
            let _ = error.print();
            return 0;
        }
        Err(error) => {
            let output = Output::new(json, false);
            if shows_a_secret(&typed, error.kind()) {
                output.error(&value_in_argv());
            } else if json {
                output.error(&usage(&error));
            } else {
                let _ = error.print();
            }
            return Code::Usage.exit();
        }
    };
    let output = Output::new(cli.global.json, cli.global.quiet);
    match dispatch(cli, output).await {
        Ok(()) => 0,
        Err(error) => {
            if error.code() != Code::Closed {
                output.error(&error);
            }
            error.code().exit()
        }
    }
}

/// Whether the parser's own message would print what may be a secret's value.
fn shows_a_secret(typed: &[OsString], kind: ErrorKind) -> bool {
    let is_put = typed.windows(2).any(|words| words == ["secret", "put"]);
    is_put && matches!(kind, ErrorKind::UnknownArgument | ErrorKind::TooManyValues)
}

fn value_in_argv() -> Error {
    Error::new(
        Code::Usage,
        "a secret's value does not belong on the command line, where everybody on this machine can read it",
        "give it on standard input, with `--from-file FILE`, or type it when asked: \
         `casemate secret put NAME --host HOST`. Change the value if this machine is not yours alone",
    )
}

fn usage(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let mut lines = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or("the command line is not understood");
    let what = what.strip_prefix("error: ").unwrap_or(what);
    Error::new(Code::Usage, what, "see `casemate COMMAND --help`")
        .lines(lines.map(str::to_owned).collect::<Vec<_>>())
}

async fn dispatch(cli: Cli, output: Output) -> Result<(), Error> {
    if let Command::Completions { shell } = cli.command {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut args::command(), "casemate", &mut text);
        return output.text(&String::from_utf8_lossy(&text));
    }
    let cx = Context {
        home: Home::locate(cli.global.home)?,
        output,
        passphrases: Passphrases::new(cli.global.passphrase_file),
    };
    match cli.command {
        Command::Init(args) => init::init(&cx, &args),
        Command::Deploy(args) => deploy::deploy(&cx, &args).await,
        Command::Rollback(args) => deploy::rollback(&cx, &args).await,
        Command::Renew(args) => deploy::renew(&cx, &args).await,
        Command::Prune(args) => deploy::prune(&cx, &args).await,
        Command::Remove(args) => deploy::remove(&cx, &args).await,
        Command::Secret(args::Secret::Put(args)) => secrets::put(&cx, &args).await,
        Command::Secret(args::Secret::List(whose)) => secrets::list(&cx, &whose).await,
        Command::Secret(args::Secret::Rm(args)) => secrets::remove(&cx, &args).await,
        Command::Status(whose) => status::status(&cx, &whose).await,
        Command::Logs(args) => logs::logs(&cx, &args).await,
        Command::Fleet(args::Fleet::Init(args)) => fleet::init(&cx, &args),
        Command::Fleet(args::Fleet::Online(args)) => fleet::online(&cx, &args),
        Command::Fleet(args::Fleet::Publish) => fleet::publish(&cx).await,
        Command::Fingerprint => fleet::fingerprint(&cx),
        Command::Login(args) => login::login(&cx, &args).await,
        Command::Pool(args::Pool::List) => pools::list(&cx).await,
        Command::Pool(args::Pool::Add(args)) => pools::add(&cx, &args).await,
        Command::Pool(args::Pool::Rotate(args)) => pools::rotate(&cx, &args).await,
        Command::Tenant(args::Tenant::Key(args)) => tenants::key(&cx, &args),
        Command::Tenant(args::Tenant::Add(args)) => tenants::add(&cx, &args).await,
        Command::Tenant(args::Tenant::List) => tenants::list(&cx).await,
        Command::Tenant(args::Tenant::Show { name }) => tenants::show(&cx, &name).await,
        Command::Tenant(args::Tenant::Hosts(args)) => tenants::hosts(&cx, &args).await,
        Command::Node(args::Node::Token(args)) => nodes::token(&cx, &args).await,
        Command::Node(args::Node::Admit(args)) => nodes::admit(&cx, &args).await,
        Command::Node(args::Node::List) => nodes::list(&cx).await,
        Command::Node(args::Node::Show { name }) => nodes::show(&cx, &name).await,
        Command::Node(args::Node::Revoke(args)) => nodes::revoke(&cx, &args).await,
        Command::Token(args::Token::Create(args)) => tokens::create(&cx, &args).await,
        Command::Token(args::Token::List) => tokens::list(&cx).await,
        Command::Token(args::Token::Revoke { id }) => tokens::revoke(&cx, &id).await,
        Command::Audit(args) => tokens::audit(&cx, &args).await,
        Command::Completions { .. } => Ok(()),
    }
}

/// Write something that is shown once into a file for its owner alone; whether it was.
fn write_once(out: Option<&Path>, text: &str) -> Result<bool, Error> {
    let Some(path) = out else { return Ok(false) };
    if path.exists() {
        return Err(Error::new(
            Code::Exists,
            "the file is there already",
            "name another file, or remove it first",
        )
        .at(path.display()));
    }
    let path = if path.is_absolute() {
        path.to_owned()
    } else {
        Path::new(".").join(path)
    };
    write_private(&path, format!("{text}\n").as_bytes())?;
    Ok(true)
}

/// The beginning of a digest, for people.
fn short(digest: &impl std::fmt::Display) -> String {
    digest.to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_parsers_message_never_shows_what_may_be_a_value() {
        for line in [
            "casemate secret put KEY hunter2 --host a.test",
            "casemate secret put KEY --host a.test --valeu hunter2",
        ] {
            let error = args::command()
                .try_get_matches_from(words(line))
                .unwrap_err();
            assert!(shows_a_secret(&words(line), error.kind()), "{line}");
        }
        assert!(!value_in_argv().to_text().contains("hunter2"));
    }

    #[tokio::test]
    async fn a_command_line_that_makes_no_sense_ends_with_64() {
        assert_eq!(run(words("casemate deploi")).await, 64);
        assert_eq!(run(words("casemate --json deploy --wait soon")).await, 64);
    }
}
