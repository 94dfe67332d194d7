//! The parts of `casemate.toml`: each table and list as the type that a release holds.

use std::path::{Path, PathBuf};

use casemate_trust::authority::{CaError, CaPem};
use casemate_trust::host::HostName;
use casemate_trust::name::{Identifier, Name};
use casemate_trust::release::{
    Credential, EgressRule, Limits, MAX_BODY_BYTES, MAX_CA_BYTES, Perimeter, Scheme, Slot, Var,
};
use casemate_trust::statement::MAX_POOLS;
use toml::de::DeValue;

use super::file::read;
use super::reader::Section;
use crate::endpoint::Endpoint;

/// Most folders beside the project that one may name.
const MAX_INCLUDED: usize = 16;

pub(super) fn read_pools(section: &mut Section<'_>) -> Option<Vec<Name>> {
    let pools = section.list::<Name>("pools")?;
    if !(1..=MAX_POOLS).contains(&pools.len()) {
        section.wrong("pools", format!("`pools`: expected 1 to {MAX_POOLS} pools"));
    }
    Some(pools)
}

/// Reads the folders beside the project, which must exist: a misspelt one would only show as a
/// refused import.
pub(super) fn read_include(folder: &Path, file: &mut Section<'_>) -> Vec<PathBuf> {
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
pub(super) fn stays_inside(path: &str) -> bool {
    use std::path::Component;
    !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

pub(super) fn read_perimeter(mut section: Section<'_>) -> Perimeter {
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

pub(super) fn read_limits(mut section: Section<'_>) -> Limits {
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

pub(super) fn read_vars(section: &Section<'_>) -> Vec<Var> {
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

pub(super) fn read_egress(folder: &Path, mut section: Section<'_>) -> Option<EgressRule> {
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

pub(super) fn read_credential(folder: &Path, mut section: Section<'_>) -> Option<Credential> {
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
