//! The implementation of the commands.

mod compare;
mod confirm;
mod deploy;
mod doctor;
mod environment;
mod expiry;
mod fleet;
mod freshness;
mod image;
mod images;
mod init;
mod login;
mod logs;
mod nodes;
mod origin;
mod pools;
mod rotate;
mod secrets;
mod status;
mod stopped;
mod tenant_keys;
mod tenants;
mod tokens;
mod versions;
mod whoami;

use std::ffi::OsString;
use std::path::Path;
use std::sync::OnceLock;

use casemate_trust::key::PublicKey;
use casemate_trust::keyfile::Purpose;
use clap::FromArgMatches as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

pub(crate) use deploy::put_command;

use crate::args::{self, Cli, Command};
use crate::clock::Clocks;
use crate::complete;
use crate::error::{Code, Error};
use crate::home::{Home, write_private};
use crate::keys::Passphrases;
use crate::output::Output;
use crate::project::Project;
use crate::session::Context;

/// Run the typed command; returns the exit code.
pub async fn run(typed: Vec<OsString>) -> u8 {
    let json = typed.iter().any(|word| word == "--json");
    let parsed = args::command()
        .try_get_matches_from(&typed)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // Help and version; a closed pipe is not an error.
            let _ = error.print();
            return 0;
        }
        Err(error) => {
            let output = Output::new(json, false);
            if may_hold_a_secret(&typed) && !is_help(error.kind()) {
                output.error(&not_repeated(&error, &typed));
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

/// Whether the parser's own messages, which repeat what was typed, must not be shown: any word may
/// be a secret's value. The command is looked for as a word, wherever it stands, because a line
/// that was not understood has no reliable parts.
fn may_hold_a_secret(typed: &[OsString]) -> bool {
    typed.iter().any(|word| word == "secret" || word == "login")
}

fn is_help(kind: ErrorKind) -> bool {
    kind == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// The error for such a line: its text comes from the parser's own list of arguments, never from
/// what was typed.
fn not_repeated(error: &clap::Error, typed: &[OsString]) -> Error {
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
        ErrorKind::InvalidSubcommand => ("there is no such command", "not what is expected"),
        ErrorKind::MissingSubcommand => ("a command is missing", "missing"),
        ErrorKind::UnknownArgument => ("an option is not known here", "not known"),
        _ => ("an argument has an invalid value", "not what is expected"),
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
        format!("{what}; what was typed is not repeated, because it may hold a secret"),
        "values go to standard input or into a file; replace a value that was typed into the command line. See `--help`",
    )
    .lines(lines)
}

/// The command that the declared words among what was typed lead to.
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
        return output.text(&complete::script(shell)?);
    }
    let mut command = cli.command;
    let environment = match &cli.global.env {
        Some(name) => Project::load(environment::folder(&command), Some(name))?.environment,
        None => None,
    };
    if let Some(environment) = &environment {
        environment::translate(&mut command, environment);
    }
    let profile = environment
        .as_ref()
        .and_then(|environment| environment.profile.as_ref());
    let cx = Context {
        home: Home::of_profile(cli.global.home, profile)?,
        output,
        passphrases: Passphrases::new(cli.global.passphrase_file),
        environment,
        clocks: OnceLock::new(),
    };
    cx.home.must_be_readable()?;
    let done = act(&cx, command).await;
    done.map_err(|error| Clocks::explain(cx.clocks.get(), error))
}

async fn act(cx: &Context, command: Command) -> Result<(), Error> {
    match command {
        Command::Init(args) => init::init(cx, &args),
        Command::Deploy(args) => deploy::deploy(cx, &args).await,
        Command::Rollback(args) => deploy::rollback(cx, &args).await,
        Command::Renew(args) => deploy::renew(cx, &args).await,
        Command::Freshness(args::Freshness::Key(args)) => freshness::key(cx, &args),
        Command::Freshness(args::Freshness::Require(args)) => freshness::require(cx, &args).await,
        Command::Freshness(args::Freshness::Renew(args)) => freshness::renew(cx, &args).await,
        Command::Freshness(args::Freshness::Show(whose)) => freshness::show(cx, &whose).await,
        Command::Freshness(args::Freshness::Off(args)) => freshness::off(cx, &args).await,
        Command::Prune(args) => deploy::prune(cx, &args).await,
        Command::Remove(args) => deploy::remove(cx, &args).await,
        Command::Secret(args::Secret::Put(args)) => secrets::put(cx, &args).await,
        Command::Secret(args::Secret::List(whose)) => secrets::list(cx, &whose).await,
        Command::Secret(args::Secret::Rm(args)) => secrets::remove(cx, &args).await,
        Command::Status(whose) => status::status(cx, &whose).await,
        Command::Versions(args) => versions::versions(cx, &args).await,
        Command::Whoami(whose) => whoami::whoami(cx, &whose).await,
        Command::Doctor(args) => doctor::doctor(cx, &args).await,
        Command::Logs(args) => logs::logs(cx, &args).await,
        Command::Fleet(args::Fleet::Init(args)) => fleet::init(cx, &args),
        Command::Fleet(args::Fleet::Online(args)) => fleet::online(cx, &args),
        Command::Fleet(args::Fleet::Publish(args)) => fleet::publish(cx, &args).await,
        Command::Fleet(args::Fleet::RotateRoot) => rotate::rotate_root(cx),
        Command::Fingerprint => fleet::fingerprint(cx),
        Command::Login(args) => login::login(cx, &args).await,
        Command::Pool(args::Pool::List) => pools::list(cx).await,
        Command::Pool(args::Pool::Add(args)) => pools::add(cx, &args).await,
        Command::Pool(args::Pool::Rotate(args)) => pools::rotate(cx, &args).await,
        Command::Tenant(args::Tenant::Key(args)) => tenants::key(cx, &args),
        Command::Tenant(args::Tenant::Add(args)) => tenants::add(cx, &args).await,
        Command::Tenant(args::Tenant::List) => tenants::list(cx).await,
        Command::Tenant(args::Tenant::Show { name }) => tenants::show(cx, &name).await,
        Command::Tenant(args::Tenant::Hosts(args)) => tenants::hosts(cx, &args).await,
        Command::Tenant(args::Tenant::Update(args)) => tenants::update(cx, &args).await,
        Command::Tenant(args::Tenant::Rekey(args)) => tenant_keys::rekey(cx, &args).await,
        Command::Tenant(args::Tenant::Remove(args)) => tenant_keys::remove(cx, &args).await,
        Command::Node(args::Node::Token(args)) => nodes::token(cx, &args).await,
        Command::Node(args::Node::Admit(args)) => nodes::admit(cx, &args).await,
        Command::Node(args::Node::List) => nodes::list(cx).await,
        Command::Node(args::Node::Show(args)) => nodes::show(cx, &args).await,
        Command::Node(args::Node::Revoke(args)) => nodes::revoke(cx, &args).await,
        Command::Image(args::Image::Build(args)) => image::build(cx, &args),
        Command::Image(args::Image::Push(args)) => images::push(cx, &args).await,
        Command::Image(args::Image::List) => images::list(cx).await,
        Command::Token(args::Token::Create(args)) => tokens::create(cx, &args).await,
        Command::Token(args::Token::List) => tokens::list(cx).await,
        Command::Token(args::Token::Revoke(args)) => tokens::revoke(cx, &args).await,
        Command::Audit(args) => tokens::audit(cx, &args).await,
        Command::Expiry => expiry::expiry(cx).await,
        Command::Completions { .. } => Ok(()),
    }
}

/// Write a text that is shown once into a file for its owner alone; returns whether it was written.
fn write_once(out: Option<&Path>, text: &str) -> Result<bool, Error> {
    let Some(path) = out else { return Ok(false) };
    if path.exists() {
        return Err(Error::new(
            Code::Exists,
            "the file exists already",
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
pub(crate) fn short(digest: &impl std::fmt::Display) -> String {
    digest.to_string().chars().take(12).collect()
}

/// Makes a key in its two files, or finds an existing one, and prints its public half; returns
/// whether it is new.
fn show_key(
    cx: &Context,
    files: (&str, &str),
    purpose: Purpose,
    plain: bool,
    name: &str,
) -> Result<(PublicKey, bool), Error> {
    let (public, new) = cx.keys().find_or_make(files, purpose, plain, name)?;
    let fingerprint = public.fingerprint();
    let result =
        serde_json::json!({ "public_key": public, "fingerprint": fingerprint, "new": new });
    cx.output.result(&result, || {
        format!("public key   {public}\nfingerprint  {fingerprint}")
    })?;
    Ok((public, new))
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
                "[NAME]: not what is expected (Name of the secret, such as STRIPE_KEY)",
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
                "--wait <SECONDS>: not what",
            ),
        ] {
            let typed = words(line);
            let error = args::command().try_get_matches_from(&typed).unwrap_err();
            let text = not_repeated(&error, &typed).to_text();
            assert!(text.contains(named), "{line}: {text}");
        }
    }

    #[tokio::test]
    async fn a_command_line_that_makes_no_sense_ends_with_64() {
        assert_eq!(run(words("casemate deploi")).await, 64);
        assert_eq!(run(words("casemate --json deploy --wait soon")).await, 64);
    }
}
