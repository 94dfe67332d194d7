//! `casemate.toml`: the description of a project, and the release that it makes.

mod environment;
mod reader;

use std::ops::Range;
use std::path::{Path, PathBuf};

use casemate_trust::authority::{CaError, CaPem};
use casemate_trust::host::HostName;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::name::{Identifier, Name};
use casemate_trust::release::{
    BundleRef, Credential, EgressRule, Limits, MAX_BODY_BYTES, MAX_CA_BYTES, Perimeter, Release,
    Scheme, Slot, Var,
};
use casemate_trust::statement::MAX_POOLS;
use toml::de::{DeTable, DeValue};

use crate::bundle::{Bundle, ENTRY, Sources};
use crate::endpoint::Endpoint;
use crate::error::{Code, Error};
pub use environment::{Control, Environment};
use reader::{Mistakes, Section};

/// Name of the file in every project.
pub const FILE: &str = "casemate.toml";
/// Largest project file, bytes: a hundred rules of a hundred paths fit.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Most folders beside the project that one may name.
const MAX_INCLUDED: usize = 16;
/// The pool of projects that name none.
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
    /// There is no such file or environment, or the file has mistakes: all of them, with their lines.
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
                "correct what is named above and run the command again",
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

    /// The same project in one of its environments.
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

fn read(path: &Path, most: u64) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(std::io::Error::other(format!(
            "the file is over {most} bytes"
        )));
    }
    Ok(text)
}

#[expect(clippy::too_many_lines, reason = "older than the limit")]
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
    let owner = file.text("owner").unwrap_or_default();
    let hosts = file.list::<HostName>("hosts");
    if hosts.as_ref().is_some_and(Vec::is_empty) {
        file.wrong("hosts", "`hosts`: expected at least one host name");
    }
    let pools = read_pools(&mut file).unwrap_or_else(|| {
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
    let mut credentials: Vec<(Credential, std::ops::Range<usize>)> = Vec::new();
    for section in file.sections("credential") {
        let at = section.place("binding");
        credentials.extend(read_credential(folder, section).map(|slot| (slot, at)));
    }
    let name = name?;
    let environments = environment::read(&mut file, &name);
    let mut release = Release {
        fleet: FleetId([0; 32]),
        tenant: TenantId([0; 32]),
        function: name,
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
    };
    // Rules about the whole release are checked after those about each part: a credential's rules
    // have its own line.
    if let Some(flaw) = release.flaw() {
        file.wrong("name", flaw);
    } else {
        for (credential, at) in credentials {
            release.credentials.push(credential);
            if let Some(flaw) = release.flaw() {
                file.wrong_at(at, format!("credential: {flaw}"));
                release.credentials.pop();
            }
        }
    }
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

fn read_pools(section: &mut Section<'_>) -> Option<Vec<Name>> {
    let pools = section.list::<Name>("pools")?;
    if !(1..=MAX_POOLS).contains(&pools.len()) {
        section.wrong("pools", format!("`pools`: expected 1 to {MAX_POOLS} pools"));
    }
    Some(pools)
}

/// Reads the folders beside the project, which must exist: a misspelt one would only show as a
/// refused import.
fn read_include(folder: &Path, file: &mut Section<'_>) -> Vec<PathBuf> {
    let named = file.list::<String>("include").unwrap_or_default();
    if named.len() > MAX_INCLUDED {
        file.wrong(
            "include",
            format!("`include`: expected at most {MAX_INCLUDED} folders"),
        );
    }
    let mut folders = Vec::new();
    for name in named {
        let path = folder.join(&name);
        if !path.is_dir() {
            file.wrong("include", format!("`include`: there is no folder {name:?}"));
        }
        folders.push(path);
    }
    folders
}

/// Whether a path stays inside of its folder.
fn stays_inside(path: &str) -> bool {
    use std::path::Component;
    !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn read_perimeter(mut section: Section<'_>) -> Perimeter {
    let default = Perimeter::default();
    let perimeter = Perimeter {
        methods: section.list("methods").unwrap_or_default(),
        paths: section.list("paths").unwrap_or_default(),
        max_body_bytes: section
            .number("max_body_bytes", 0, MAX_BODY_BYTES)
            .unwrap_or(default.max_body_bytes),
    };
    section.finish();
    perimeter
}

/// Smallest heap with which V8 starts, MiB.
const LEAST_HEAP_MIB: u64 = 8;

fn read_limits(mut section: Section<'_>) -> Limits {
    let mut limit = |key, least, default| {
        let number = section.number(key, least, u32::MAX.into());
        number
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(default)
    };
    let default = Limits::default();
    let limits = Limits {
        cpu_time_ms: limit("cpu_time_ms", 1, default.cpu_time_ms),
        wall_time_ms: limit("wall_time_ms", 1, default.wall_time_ms),
        heap_mib: limit("heap_mib", LEAST_HEAP_MIB, default.heap_mib),
        subrequests: limit("subrequests", 0, default.subrequests),
        concurrency: limit("concurrency", 1, default.concurrency),
        call_time_ms: limit("call_time_ms", 1, default.call_time_ms),
    };
    section.finish();
    limits
}

fn read_vars(section: &Section<'_>) -> Vec<Var> {
    let mut vars = Vec::new();
    for (key, value) in section.entries() {
        let name = key.get_ref().parse::<Identifier>();
        match (name, value.get_ref()) {
            (Ok(name), DeValue::String(text)) => vars.push(Var {
                name,
                value: text.clone().into_owned(),
            }),
            (Ok(name), _) => section.wrong_at(
                value.span(),
                format!("variable `{name}`: expected a string; put the value in quotes"),
            ),
            (Err(error), _) => section.wrong_at(key.span(), format!("variable: {error}")),
        }
    }
    vars
}

fn read_egress(folder: &Path, mut section: Section<'_>) -> Option<EgressRule> {
    section.must_have("host", "\"api.example.com\"");
    let scheme = match section.text("scheme").as_deref() {
        None | Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        Some(other) => {
            section.wrong(
                "scheme",
                format!("`scheme`: expected https or http, got {other:?}"),
            );
            Scheme::Https
        }
    };
    let (host, port) = read_endpoint(&mut section)?;
    let rule = EgressRule {
        scheme,
        host,
        port: port.unwrap_or(scheme.default_port()),
        methods: section.list("methods").unwrap_or_default(),
        paths: section.list("paths").unwrap_or_default(),
        ca: read_ca(folder, &mut section),
    };
    section.finish();
    Some(rule)
}

fn read_credential(folder: &Path, mut section: Section<'_>) -> Option<Credential> {
    section.must_have("binding", "\"payments\"");
    section.must_have("secret", "\"PAYMENTS_KEY\"");
    section.must_have("host", "\"api.example.com\"");
    section.must_have("slot", "\"bearer\"");
    let binding = section.parsed("binding");
    let secret = section.parsed("secret");
    let host = read_endpoint(&mut section);
    let methods = section.list("methods").unwrap_or_default();
    let paths = section.list("paths").unwrap_or_default();
    let slot = read_slot(&mut section);
    let auto = section.flag("auto").unwrap_or(false);
    let ranges = section.flag("ranges").unwrap_or(false);
    let ca = read_ca(folder, &mut section);
    section.finish();
    let (host, port) = host?;
    Some(Credential {
        binding: binding?,
        secret: secret?,
        host,
        port: port.unwrap_or(Scheme::Https.default_port()),
        methods,
        paths,
        slot: slot?,
        auto,
        ca,
        ranges,
    })
}

/// Reads `host` with or without a port, and `port`, which may be given in one of the two places.
fn read_endpoint(section: &mut Section<'_>) -> Option<(HostName, Option<u16>)> {
    let endpoint = section.parsed::<Endpoint>("host");
    let port = section.number("port", 1, u16::MAX.into());
    let endpoint = endpoint?;
    if port.is_some() && endpoint.port.is_some() {
        section.wrong("port", "`port` is given twice: in `host` too");
    }
    let port = port.and_then(|port| u16::try_from(port).ok());
    Some((endpoint.host, port.or(endpoint.port)))
}

fn read_slot(section: &mut Section<'_>) -> Option<Slot> {
    const KINDS: &str = "`slot`: expected \"bearer\", { header = \"x-api-key\" }, \
                         { basic = { username = \"...\" } } or { query = \"key\" }";
    if !section.is_table("slot") {
        let kind = section.text("slot")?;
        if kind == "bearer" {
            return Some(Slot::Bearer);
        }
        section.wrong("slot", format!("{KINDS}, got {kind:?}"));
        return None;
    }
    let mut slot = section.section("slot")?;
    let header = slot.text("header");
    let prefix = slot.text("prefix");
    let query = slot.text("query");
    let basic = slot.section("basic").map(|mut basic| {
        basic.must_have("username", "\"api\"");
        let username = basic.text("username");
        basic.finish();
        username
    });
    let read = match (header, basic, query) {
        (Some(name), None, None) => Some(Slot::Header {
            name: name.to_ascii_lowercase(),
            prefix: prefix.clone().unwrap_or_default(),
        }),
        (None, Some(username), None) => username.map(|username| Slot::Basic { username }),
        (None, None, Some(name)) => Some(Slot::Query { name }),
        _ => {
            section.wrong("slot", KINDS);
            None
        }
    };
    if prefix.is_some() && !matches!(read, Some(Slot::Header { .. })) {
        section.wrong("slot", "`prefix` goes with `header` only");
    }
    slot.finish();
    read
}

/// The certificate authority in a PEM file of the project.
fn read_ca(folder: &Path, section: &mut Section<'_>) -> Option<CaPem> {
    let path = section.text("ca")?;
    match load_ca(&folder.join(&path)) {
        Ok(ca) => Some(ca),
        Err(problem) => {
            section.wrong("ca", format!("`ca`: {path}: {problem}"));
            None
        }
    }
}

/// The certificate authority in a PEM file.
///
/// # Errors
/// The file cannot be read, or holds something other than certificates: the text names the cause,
/// without the path.
pub fn load_ca(path: &Path) -> Result<CaPem, String> {
    let text =
        read(path, MAX_CA_BYTES as u64).map_err(|error| format!("cannot read it: {error}"))?;
    text.parse().map_err(|error: CaError| error.to_string())
}

#[cfg(test)]
mod tests;
