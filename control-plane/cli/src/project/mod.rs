//! `casemate.toml`: the description of a project, and the release that it makes.

mod environment;
mod file;
mod parts;
mod reader;

use std::ops::Range;
use std::path::{Path, PathBuf};

use casemate_trust::host::HostName;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::name::Name;
use casemate_trust::release::{BundleRef, Credential, Release};
use toml::de::DeTable;

use crate::bundle::{Bundle, ENTRY, Sources};
use crate::error::{Code, Error};
pub use environment::{Control, Environment};
use file::read;
pub use parts::load_ca;
use parts::{
    read_credential, read_egress, read_include, read_limits, read_perimeter, read_pools, read_vars,
    stays_inside,
};
use reader::{Mistakes, Section};

/// Name of the file in every project.
pub const FILE: &str = "casemate.toml";
/// Largest project file, bytes: a hundred rules of a hundred paths fit.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The pool of projects that do not name a pool.
pub const DEFAULT_POOL: &str = "main";

/// A project as its `casemate.toml` describes it.
#[derive(Debug, Clone)]
pub struct Project {
    /// The project's folder.
    pub folder: PathBuf,
    /// Main module, relative to the folder.
    pub main: String,
    /// Pools that it runs in.
    pub pools: Vec<Name>,
    /// The environment that the project was read for, unless it is the one without a name.
    pub environment: Option<Environment>,
    /// Folders beside the project that its modules may be imported from.
    include: Vec<PathBuf>,
    /// The rest, with placeholders for fields that are known only when the manifest is signed.
    release: Release,
}

impl Project {
    /// Read the project in `folder`, as it is in an environment.
    ///
    /// # Errors
    /// There is no such file or environment, or the file has mistakes: all of them, with their
    /// lines.
    pub fn load(folder: &Path, environment: Option<&Name>) -> Result<Self, Error> {
        let path = folder.join(FILE);
        let text = read(&path, MAX_FILE_BYTES).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                let next = "run this in the project's folder, name it with `--project DIR`, \
                            or make a project with `casemate init NAME`";
                Error::new(Code::Input, "there is no casemate.toml", next).at(path.display())
            } else {
                Error::new(Code::Input, "cannot read casemate.toml", "check the file")
                    .at(path.display())
                    .source(error)
            }
        })?;
        let parsed = Self::parse(folder, &text).map_err(|mistakes| {
            let many = match mistakes.len() {
                1 => "a mistake".to_owned(),
                count => format!("{count} mistakes"),
            };
            Error::new(
                Code::Project,
                format!("casemate.toml has {many}"),
                "correct the mistakes above and run the command again",
            )
            .at(path.display())
            .lines(mistakes)
        });
        let (project, environments) = parsed?;
        match environment {
            Some(name) => project
                .within(name, environments)
                .map_err(|error| error.at(path.display())),
            None => Ok(project),
        }
    }

    /// This project with the changes of one of its environments.
    fn within(mut self, name: &Name, environments: Vec<Environment>) -> Result<Self, Error> {
        let known: Vec<_> = environments
            .iter()
            .map(|known| known.name.to_string())
            .collect();
        let Some(environment) = environments.into_iter().find(|known| known.name == *name) else {
            let next = if known.is_empty() {
                format!("make one: a table [env.{name}]")
            } else {
                format!(
                    "there are {}; make another with a table [env.{name}]",
                    known.join(", ")
                )
            };
            let what = format!("casemate.toml has no environment {name}");
            return Err(Error::new(Code::Project, what, next));
        };
        environment.apply(&mut self.release);
        if let Some(pools) = &environment.pools {
            self.pools.clone_from(pools);
        }
        self.environment = Some(environment);
        Ok(self)
    }

    fn parse(folder: &Path, text: &str) -> Result<(Self, Vec<Environment>), Vec<String>> {
        let mistakes = Mistakes::default();
        let (file, errors) = DeTable::parse_recoverable(text);
        let mut errors: Vec<_> = errors
            .iter()
            .map(|error| (error.span().unwrap_or(0..0), error.message()))
            .collect();
        errors.sort_by_key(|(at, _)| at.start);
        // A mistake on the same line or the next, such as one quote too many, is mostly a
        // consequence of the first.
        let before_it = |at: &Range<usize>| text.get(..at.start).unwrap_or(text);
        let line = |at: &Range<usize>| before_it(at).matches('\n').count();
        let mut before: Option<usize> = None;
        for (at, message) in &errors {
            let follows = before.is_some_and(|before| line(at) <= before + 1);
            before = Some(line(at));
            if !follows {
                mistakes.add(at.clone(), *message);
            }
        }
        // Keys that are missing after a syntax error are not reported: they would hide the real
        // mistake.
        if !errors.is_empty() {
            return Err(mistakes.lines(text));
        }
        let read = read_project(folder, Section::new(&file, &mistakes));
        match read {
            Some(read) if mistakes.is_empty() => Ok(read),
            _ => Err(mistakes.lines(text)),
        }
    }

    /// The sources of the bundle; `home` is the folder with keys and tokens.
    pub fn sources<'a>(&'a self, home: &'a Path) -> Sources<'a> {
        Sources {
            folder: &self.folder,
            main: &self.main,
            include: &self.include,
            home,
        }
    }

    /// The function's name.
    pub fn name(&self) -> &Name {
        &self.release.function
    }

    /// The hosts that it answers for.
    pub fn hosts(&self) -> &[HostName] {
        &self.release.hosts
    }

    /// Its credential slots.
    pub fn credentials(&self) -> &[Credential] {
        &self.release.credentials
    }

    /// The release of this project with a bundle.
    pub fn release(&self, fleet: FleetId, tenant: TenantId, bundle: &Bundle) -> Release {
        Release {
            fleet,
            tenant,
            bundle: BundleRef {
                digest: Digest(bundle.digest),
                bytes: bundle.bytes.len() as u64,
            },
            ..self.release.clone()
        }
    }
}

/// The project and its environments; `None` where its name or its main file is missing, which
/// `file` has noted.
fn read_project(folder: &Path, mut file: Section<'_>) -> Option<(Project, Vec<Environment>)> {
    file.must_have("name", "\"shop\"");
    file.must_have("main", "\"src/main.ts\"");
    file.must_have("hosts", "[\"shop.example.com\"]");
    let name = file.parsed::<Name>("name");
    let main = file.text("main");
    if main.as_deref().is_some_and(|main| !stays_inside(main)) {
        file.wrong(
            "main",
            "`main`: expected a path inside of the project's folder",
        );
    }
    let include = read_include(folder, &mut file);
    let (pools, release, credentials) = read_release(folder, &mut file, name);
    let mut release = release?;
    let environments = environment::read(&mut file, &release.function);
    check_release(&mut file, &mut release, credentials);
    for (environment, at) in &environments {
        let mut within = release.clone();
        environment.apply(&mut within);
        if let Some(flaw) = within.flaw() {
            file.wrong_at(
                at.clone(),
                format!("environment {}: {flaw}", environment.name),
            );
        }
    }
    file.finish();
    let project = Project {
        folder: folder.to_path_buf(),
        main: main?,
        pools,
        environment: None,
        include,
        release,
    };
    let environments = environments.into_iter().map(|(environment, _)| environment);
    Some((project, environments.collect()))
}

/// A credential slot, and where it stands in the file.
type Placed = (Credential, Range<usize>);

/// The pools, and the release that a file describes if it has a name. The credentials are returned
/// apart from the release, because they are checked one by one.
fn read_release(
    folder: &Path,
    file: &mut Section<'_>,
    name: Option<Name>,
) -> (Vec<Name>, Option<Release>, Vec<Placed>) {
    let owner = file.text("owner").unwrap_or_default();
    let hosts = file.list::<HostName>("hosts");
    if hosts.as_ref().is_some_and(Vec::is_empty) {
        file.wrong("hosts", "`hosts`: expected at least one host name");
    }
    let pools = read_pools(file).unwrap_or_else(|| {
        DEFAULT_POOL
            .parse()
            .map(|name| vec![name])
            .unwrap_or_default()
    });
    let dynamic_code = file.flag("dynamic_code").unwrap_or(false);
    let perimeter = file.section("perimeter").map(read_perimeter);
    let limits = file.section("limits").map(read_limits);
    let vars = file.section("vars").map(|section| read_vars(&section));
    let mut egress = Vec::new();
    for section in file.sections("egress") {
        egress.extend(read_egress(folder, section));
    }
    let mut credentials = Vec::new();
    for section in file.sections("credential") {
        let at = section.place("binding");
        credentials.extend(read_credential(folder, section).map(|slot| (slot, at)));
    }
    let release = name.map(|function| Release {
        fleet: FleetId([0; 32]),
        tenant: TenantId([0; 32]),
        function,
        bundle: BundleRef {
            digest: Digest([0; 32]),
            bytes: 0,
        },
        entry: ENTRY.to_owned(),
        hosts: hosts.unwrap_or_default(),
        perimeter: perimeter.unwrap_or_default(),
        limits: limits.unwrap_or_default(),
        vars: vars.unwrap_or_default(),
        egress,
        credentials: Vec::new(),
        dynamic_code,
        owner,
    });
    (pools, release, credentials)
}

/// Rules about the whole release are checked after those about each part: a credential's rules have
/// its own line.
fn check_release(file: &mut Section<'_>, release: &mut Release, credentials: Vec<Placed>) {
    if let Some(flaw) = release.flaw() {
        file.wrong("name", flaw);
        return;
    }
    for (credential, at) in credentials {
        release.credentials.push(credential);
        if let Some(flaw) = release.flaw() {
            file.wrong_at(at, format!("credential: {flaw}"));
            release.credentials.pop();
        }
    }
}

#[cfg(test)]
mod tests;
