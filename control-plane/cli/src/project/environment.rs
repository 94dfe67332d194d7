//! `[env.NAME]` in `casemate.toml`: the differences of a function that runs for another purpose.

use std::collections::BTreeMap;
use std::ops::Range;

use casemate_trust::host::HostName;
use casemate_trust::id::FleetId;
use casemate_trust::name::{Identifier, Name};
use casemate_trust::release::{Release, Var};
use toml::de::DeValue;

use super::parts::{read_pools, read_vars};
use super::reader::Section;

/// Most environments of a project.
const MAX_ENVIRONMENTS: usize = 32;

/// One environment.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Its name.
    pub name: Name,
    /// The function's name outside of it.
    pub base: Name,
    /// The function's name in it.
    pub function: Name,
    /// The home folder in place of the default one: `casemate-PROFILE` beside it.
    pub profile: Option<Name>,
    /// The control plane that the home must be logged in to.
    pub control: Option<Control>,
    /// The tenant, where the home's key signs for several.
    pub tenant: Option<Name>,
    /// Names of secrets in it, by their names outside of it.
    pub secrets: BTreeMap<Identifier, Identifier>,
    hosts: Option<Vec<HostName>>,
    pub(super) pools: Option<Vec<Name>>,
    vars: Vec<Var>,
}

/// A control plane, as its operator writes it: `https://HOST:PORT#FINGERPRINT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The text of the file.
    pub text: String,
    /// The fleet's fingerprint.
    pub fleet: FleetId,
}

impl std::str::FromStr for Control {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "expected the control plane as https://HOST:PORT#FINGERPRINT, which the operator gives"
                .to_owned()
        };
        let (url, fingerprint) = text.split_once('#').ok_or_else(wrong)?;
        crate::client::Address::parse(url).map_err(|_| wrong())?;
        let fleet = fingerprint.to_ascii_lowercase().parse();
        Ok(Self {
            text: text.to_owned(),
            fleet: fleet.map_err(|_| wrong())?,
        })
    }
}

impl Environment {
    /// The name of a function in this environment.
    pub fn function(&self, name: &Name) -> Name {
        if *name == self.base {
            self.function.clone()
        } else {
            name.clone()
        }
    }

    /// The name of a secret in this environment.
    pub fn secret(&self, name: &Identifier) -> Identifier {
        self.secrets.get(name).unwrap_or(name).clone()
    }

    /// Changes the project's release into that of this environment.
    pub(super) fn apply(&self, release: &mut Release) {
        release.function = self.function.clone();
        if let Some(hosts) = &self.hosts {
            release.hosts.clone_from(hosts);
        }
        for var in &self.vars {
            match release.vars.iter_mut().find(|held| held.name == var.name) {
                Some(held) => held.value.clone_from(&var.value),
                None => release.vars.push(var.clone()),
            }
        }
        for slot in &mut release.credentials {
            slot.secret = self.secret(&slot.secret);
        }
    }
}

/// Every environment of the file, each with its place in it.
pub(super) fn read(file: &mut Section<'_>, base: &Name) -> Vec<(Environment, Range<usize>)> {
    let Some(section) = file.section("env") else {
        return Vec::new();
    };
    let mut environments = Vec::new();
    for (key, value) in section.entries() {
        let Some(inner) = section.inner("an environment", key.get_ref(), value) else {
            continue;
        };
        match key.get_ref().parse::<Name>() {
            Ok(name) => environments.push((read_one(inner, name, base), key.span())),
            Err(error) => section.wrong_at(key.span(), format!("environment: {error}")),
        }
    }
    if environments.len() > MAX_ENVIRONMENTS {
        section.wrong_at(
            section.at.clone(),
            format!("expected at most {MAX_ENVIRONMENTS} environments"),
        );
    }
    environments
}

fn read_one(mut section: Section<'_>, name: Name, base: &Name) -> Environment {
    let environment = Environment {
        name,
        base: base.clone(),
        function: section.parsed("name").unwrap_or_else(|| base.clone()),
        profile: section.parsed("profile"),
        control: section.parsed("control"),
        tenant: section.parsed("tenant"),
        secrets: section
            .section("secrets")
            .map(|section| read_secrets(&section))
            .unwrap_or_default(),
        hosts: section.list("hosts"),
        pools: read_pools(&mut section),
        vars: section
            .section("vars")
            .map(|section| read_vars(&section))
            .unwrap_or_default(),
    };
    if environment.hosts.as_ref().is_some_and(Vec::is_empty) {
        section.wrong("hosts", "`hosts`: expected at least one host name");
    }
    section.finish();
    environment
}

fn read_secrets(section: &Section<'_>) -> BTreeMap<Identifier, Identifier> {
    let mut secrets = BTreeMap::new();
    for (key, value) in section.entries() {
        let from = key.get_ref().parse::<Identifier>();
        let to = match value.get_ref() {
            DeValue::String(text) => text
                .parse::<Identifier>()
                .map_err(|error| error.to_string()),
            _ => Err("expected the name of a secret in quotes".to_owned()),
        };
        match (from, to) {
            (Ok(from), Ok(to)) => drop(secrets.insert(from, to)),
            (Err(error), _) => section.wrong_at(key.span(), format!("secret: {error}")),
            (_, Err(error)) => section.wrong_at(value.span(), format!("secret: {error}")),
        }
    }
    secrets
}
