//! The implementation of the commands.

mod compare;
mod confirm;
mod deploy;
mod doctor;
mod environment;
mod expiry;
mod finish;
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
mod show_key;
mod status;
mod stopped;
mod tenant_keys;
mod tenants;
mod tokens;
mod usage;
mod versions;
mod whoami;
mod write_once;

use std::ffi::OsString;
use std::sync::OnceLock;

use clap::FromArgMatches as _;

use crate::args::{self, Cli, Command};
use crate::clock::Clocks;
use crate::complete;
use crate::error::{Code, Error};
use crate::home::Home;
use crate::keys::Passphrases;
use crate::output::Output;
use crate::project::Project;
use crate::session::Context;
use usage::{is_help, may_hold_a_secret, not_repeated, usage};

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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[tokio::test]
    async fn a_command_line_that_makes_no_sense_ends_with_64() {
        assert_eq!(run(words("casemate deploi")).await, 64);
        assert_eq!(run(words("casemate --json deploy --wait soon")).await, 64);
    }
}
