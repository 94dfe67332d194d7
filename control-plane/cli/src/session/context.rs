//! The inputs that all commands share before they have a connection.

use std::path::Path;
use std::sync::OnceLock;

use casemate_trust::id::FleetId;
use casemate_trust::keyfile::Purpose;
use casemate_trust::name::Identifier;

use crate::clock::Clocks;
use crate::error::{Code, Error};
use crate::home::Home;
use crate::keys::{self, Keys, Passphrases};
use crate::output::Output;
use crate::project::{Environment, Project};

/// The inputs that all commands share: made once by the dispatcher from the command line, lent to
/// the command.
#[derive(Debug)]
pub struct Context {
    /// The home folder.
    pub home: Home,
    /// The terminal.
    pub output: Output,
    /// The sources of passphrases.
    pub passphrases: Passphrases,
    /// The environment of the project that `--env` names.
    pub environment: Option<Environment>,
    /// This machine's clock and the control plane's, once it has answered.
    pub clocks: OnceLock<Clocks>,
}

impl Context {
    /// The home's key files.
    pub fn keys(&self) -> Keys<'_> {
        Keys::new(&self.home, &self.passphrases)
    }

    /// The project in a folder, as it is in the environment.
    ///
    /// # Errors
    /// The folder has no `casemate.toml`, or the file has mistakes.
    pub fn project(&self, folder: &Path) -> Result<Project, Error> {
        let environment = self.environment.as_ref();
        Project::load(folder, environment.map(|environment| &environment.name))
    }

    /// The name of a secret in the environment.
    pub fn secret(&self, name: &Identifier) -> Identifier {
        let environment = self.environment.as_ref();
        environment.map_or_else(|| name.clone(), |environment| environment.secret(name))
    }

    /// Refuses a home that belongs to another fleet than the environment names.
    pub(super) fn must_be_of_environment(&self, fleet: FleetId) -> Result<(), Error> {
        let Some(environment) = &self.environment else {
            return Ok(());
        };
        match &environment.control {
            Some(control) if control.fleet != fleet => Err(Error::new(
                Code::Refused,
                format!(
                    "the environment {} is for another control plane than this home: nothing was \
                     done",
                    environment.name
                ),
                format!(
                    "give the environment a `profile` of its own in casemate.toml, or another home \
                     with `--home DIR`, and log in there: `casemate login {}`",
                    control.text
                ),
            )
            .at(self.home.path().display())),
            _ => Ok(()),
        }
    }

    /// Whether this home can sign for the fleet.
    pub fn is_operator(&self) -> bool {
        self.keys().has(keys::ROOT)
    }

    /// The fleet's root key.
    ///
    /// # Errors
    /// The key is not in this home, or cannot be opened.
    pub fn root_key(&self) -> Result<casemate_trust::key::SigningKey, Error> {
        if self.keys().has_next(keys::ROOT) {
            return Err(Error::new(
                Code::NoKey,
                "a rotation of the root was interrupted: it is not clear which of two keys signs",
                "run `casemate fleet rotate-root` again, which continues where it stopped",
            )
            .at(self.home.path().display()));
        }
        self.keys().signing(keys::ROOT, Purpose::FleetRoot)
    }
}
