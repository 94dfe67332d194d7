//! The effects of `--env` on each command: the folder of the project, and replaced names.

use std::path::Path;

use casemate_trust::name::Identifier;

use crate::args::{Command, Secret};
use crate::project::Environment;

/// The folder of the casemate.toml that a command is about.
pub(super) fn folder(command: &Command) -> &Path {
    match command {
        Command::Deploy(args) => &args.project.project,
        Command::Doctor(args) => &args.project.project,
        Command::Secret(Secret::Put(args)) => &args.project.project,
        _ => Path::new("."),
    }
}

/// Puts the environment's names of functions and secrets in the place of the project's.
pub(super) fn translate(command: &mut Command, environment: &Environment) {
    let secret = |name: &mut Identifier| *name = environment.secret(name);
    match command {
        Command::Rollback(args) => args.function = environment.function(&args.function),
        Command::Prune(args) => args.function = environment.function(&args.function),
        Command::Remove(args) => args.function = environment.function(&args.function),
        Command::Versions(args) => {
            args.function = args
                .function
                .as_ref()
                .map(|name| environment.function(name));
        }
        Command::Logs(args) => {
            args.function = args
                .function
                .as_ref()
                .map(|name| environment.function(name));
        }
        Command::Secret(Secret::Put(args)) => args.name.iter_mut().for_each(secret),
        Command::Secret(Secret::Rm(args)) => secret(&mut args.name),
        _ => {}
    }
}
