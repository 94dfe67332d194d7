//! Shell completion: the command line, and the names that this home has seen. Completion never uses
//! the network, because a key press must not wait for it; names that cannot be read are left out.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use casemate_trust::name::Name;
use casemate_trust::statement::Manifest;
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{Bash, Elvish, EnvCompleter, Fish, Powershell, Zsh};

use crate::args;
use crate::error::Error;
use crate::home::Home;
use crate::machine::{printable, short};
use crate::memory::Known;
use crate::project::{DEFAULT_POOL, FILE, Project};

/// The variable by which a shell's script asks for completions; its value is the shell's name.
const VARIABLE: &str = "CASEMATE_COMPLETE";

/// The script that a shell reads once; it calls this program for each completion.
///
/// # Errors
/// The script cannot be written.
pub fn script(shell: Shell) -> Result<String, Error> {
    let mut text = Vec::new();
    completer(shell)
        .write_registration(VARIABLE, "casemate", "casemate", "casemate", &mut text)
        .map_err(|error| Error::internal("a shell's script cannot be written").source(error))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The completions that a shell's script asked for; `None` if no such script started the program.
pub fn answer(typed: &[OsString]) -> Option<Vec<u8>> {
    let shell: Shell = std::env::var(VARIABLE).ok()?.parse().ok()?;
    let words = typed.iter().position(|word| word == "--");
    let words = typed.get(words? + 1..)?.to_vec();
    let mut command = command(&Names::of(&words));
    let mut text = Vec::new();
    // A shell shows no completions for an empty answer; an error would appear in the middle of the
    // line that is being typed.
    let folder = std::env::current_dir().ok();
    let _ = completer(shell).write_complete(&mut command, words, folder.as_deref(), &mut text);
    Some(text)
}

fn completer(shell: Shell) -> &'static dyn EnvCompleter {
    match shell {
        Shell::Elvish => &Elvish,
        Shell::Fish => &Fish,
        Shell::PowerShell => &Powershell,
        Shell::Zsh => &Zsh,
        _ => &Bash,
    }
}

/// A name with its description.
type Named = (String, Option<String>);

/// The names that can complete a line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Names {
    functions: Vec<Named>,
    /// Earlier releases of the functions that the line names, or of all.
    versions: Vec<Named>,
    secrets: Vec<Named>,
    nodes: Vec<Named>,
    tenants: Vec<Named>,
    pools: Vec<Named>,
    environments: Vec<Named>,
}

impl Names {
    /// The names for a line with these words.
    fn of(words: &[OsString]) -> Self {
        let option = |name: &str| value_of(words, name);
        let folder = option("--project").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let environment = option("--env").and_then(|name| name.parse::<Name>().ok());
        let project = Project::load(&folder, environment.as_ref()).ok();
        let profile = project
            .as_ref()
            .and_then(|project| project.environment.as_ref());
        let profile = profile.and_then(|environment| environment.profile.clone());
        let given = option("--home").map(PathBuf::from);
        let given = given.or_else(|| std::env::var_os("CASEMATE_HOME").map(PathBuf::from));
        let mut names = Self {
            environments: environments(&folder),
            ..Self::default()
        };
        if let Ok(home) = Home::of_profile(given, profile.as_ref()) {
            names.remember(&home, words);
        }
        if let Some(project) = &project {
            let function = project.name().to_string();
            if !names.functions.iter().any(|(name, _)| *name == function) {
                names
                    .functions
                    .push((function, Some("of this project".to_owned())));
            }
            for slot in project.credentials() {
                let name = slot.secret.to_string();
                if !names.secrets.iter().any(|(known, _)| *known == name) {
                    names
                        .secrets
                        .push((name, Some(format!("for env.{}", slot.binding))));
                }
            }
        }
        names
    }

    /// The names that a home remembers.
    fn remember(&mut self, home: &Home, words: &[OsString]) {
        self.nodes = nodes(home);
        let Ok(Some(known)) = Known::load(home) else {
            return;
        };
        let judge = known.judge();
        self.pools = judge
            .pools()
            .map(|pool| (pool.name.to_string(), None))
            .collect();
        if self.pools.is_empty() {
            self.pools.push((DEFAULT_POOL.to_owned(), None));
        }
        for id in judge.memory().tenants.keys() {
            let Some(state) = judge.tenant(id) else {
                continue;
            };
            self.tenants.push((state.tenant.name.to_string(), None));
            if let Some(accord) = &state.manifest {
                self.list(&accord.manifest, words);
            }
        }
    }

    fn list(&mut self, manifest: &Manifest, words: &[OsString]) {
        let is_typed = |name: &Name| words.iter().any(|word| *word == *name.as_str());
        let some_typed = manifest.functions.keys().any(is_typed);
        for (name, wanted) in &manifest.functions {
            let about = |release| {
                let note = manifest.notes.get(release)?;
                (!note.message.is_empty()).then(|| printable(&note.message))
            };
            self.functions
                .push((name.to_string(), about(&wanted.release)));
            if some_typed && !is_typed(name) {
                continue;
            }
            let earlier = wanted.fallbacks.iter();
            self.versions
                .extend(earlier.map(|release| (short(release), about(release))));
        }
        let secrets = manifest.secrets.keys();
        self.secrets
            .extend(secrets.map(|name| (name.to_string(), None)));
    }
}

/// The value of an option among the words, in either of its two notations.
fn value_of(words: &[OsString], option: &str) -> Option<String> {
    let mut words = words.iter().map(|word| word.to_string_lossy());
    let found = words.find_map(|word| match word.strip_prefix(option) {
        Some("") => Some(None),
        Some(rest) => rest.strip_prefix('=').map(|value| Some(value.to_owned())),
        None => None,
    });
    match found? {
        Some(value) => Some(value),
        None => words.next().map(std::borrow::Cow::into_owned),
    }
}

/// The environments of a project; its file may be half written.
fn environments(folder: &Path) -> Vec<Named> {
    let text = std::fs::read_to_string(folder.join(FILE)).unwrap_or_default();
    let file: toml::Table = text.parse().unwrap_or_default();
    let tables = file.get("env").and_then(toml::Value::as_table);
    tables
        .into_iter()
        .flat_map(toml::Table::keys)
        .map(|name| (name.clone(), None))
        .collect()
}

/// The nodes that an operator's home has admitted or made tokens for.
fn nodes(home: &Home) -> Vec<Named> {
    let mut names = BTreeSet::new();
    for (file, key) in [("nodes.json", "node"), ("joins.json", "node")] {
        let list = home
            .read_json::<Vec<serde_json::Value>>(file)
            .ok()
            .flatten();
        let entries = list.unwrap_or_default();
        let named = entries.iter().filter_map(|entry| entry.get(key)?.as_str());
        names.extend(named.map(ToOwned::to_owned));
    }
    names.into_iter().map(|name| (name, None)).collect()
}

fn candidates(names: &[Named]) -> ArgValueCandidates {
    let names = names.to_vec();
    ArgValueCandidates::new(move || {
        let names = names.iter();
        names
            .map(|(name, about)| {
                let about = about.clone().map(clap::builder::StyledStr::from);
                CompletionCandidate::new(name).help(about)
            })
            .collect()
    })
}

/// Arguments that are names, by their command and their id.
fn places(names: &Names) -> Vec<(&'static [&'static str], &'static str, &[Named])> {
    vec![
        (&["rollback"], "function", &names.functions),
        (&["rollback"], "to", &names.versions),
        (&["prune"], "function", &names.functions),
        (&["remove"], "function", &names.functions),
        (&["versions"], "function", &names.functions),
        (&["logs"], "function", &names.functions),
        (&["secret", "put"], "name", &names.secrets),
        (&["secret", "put"], "pools", &names.pools),
        (&["secret", "rm"], "name", &names.secrets),
        (&["node", "show"], "name", &names.nodes),
        (&["node", "revoke"], "name", &names.nodes),
        (&["node", "admit"], "name", &names.nodes),
        (&["pool", "rotate"], "name", &names.pools),
        (&["tenant", "show"], "name", &names.tenants),
        (&["tenant", "hosts"], "name", &names.tenants),
        (&["tenant", "update"], "name", &names.tenants),
    ]
}

/// The parser with the candidate names for its arguments.
fn command(names: &Names) -> clap::Command {
    let mut command =
        args::command().mut_arg("env", |arg| arg.add(candidates(&names.environments)));
    for (path, id, known) in places(names) {
        command = add(command, path, id, known);
    }
    tenants(command, &candidates(&names.tenants))
}

fn add(
    command: clap::Command,
    path: &[&'static str],
    id: &'static str,
    known: &[Named],
) -> clap::Command {
    let Some((first, rest)) = path.split_first() else {
        return command.mut_arg(id, |arg| arg.add(candidates(known)));
    };
    command.mut_subcommand(*first, |inner| add(inner, rest, id, known))
}

/// Completes `--tenant` wherever it occurs.
fn tenants(mut command: clap::Command, known: &ArgValueCandidates) -> clap::Command {
    if command.get_arguments().any(|arg| arg.get_id() == "tenant") {
        command = command.mut_arg("tenant", |arg| arg.add(known.clone()));
    }
    let inner: Vec<String> = command
        .get_subcommands()
        .map(|inner| inner.get_name().to_owned())
        .collect();
    for name in inner {
        command = command.mut_subcommand(name, |inner| tenants(inner, known));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn every_listed_argument_exists() {
        let names = Names::default();
        // clap panics here if a listed argument does not exist.
        command(&names).debug_assert();
        assert!(places(&names).len() > 10);
    }

    #[test]
    fn both_notations_of_an_option_are_found() {
        let line = words("casemate --home /a status --env=staging --tenant");
        assert_eq!(value_of(&line, "--home").as_deref(), Some("/a"));
        assert_eq!(value_of(&line, "--env").as_deref(), Some("staging"));
        assert_eq!(value_of(&line, "--tenant"), None);
        assert_eq!(value_of(&line, "--hom"), None);
    }

    #[test]
    fn the_scripts_call_the_program() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = script(shell).unwrap();
            assert!(
                text.contains(VARIABLE) && text.contains("casemate"),
                "{shell}: {text}"
            );
        }
    }
}
