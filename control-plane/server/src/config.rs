//! The configuration file: all mistakes at once, each with its line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use casemate_push::{VERSIONS, Versions};
use casemate_trust::join::MAX_ADDRESS_BYTES;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::failure::Failure;
use crate::plane::LogLimits;

/// Default storage of a tenant, MiB: a hundred of the largest bundles, so that ten functions keep
/// all releases that a rollback can return to.
const TENANT_STORAGE_MIB: u64 = 1024;
/// Largest allowed value, MiB: a TiB. A larger number is a mistake in the unit.
const MAX_TENANT_STORAGE_MIB: u64 = 1024 * 1024;
/// Most days that logs are kept for: ten years.
const MAX_LOG_DAYS: u64 = 3660;
/// Largest file, bytes: six settings and many comments.
const MAX_FILE_BYTES: usize = 64 * 1024;
const KEYS: &str = "expected `state`, `api`, `quic`, `public_quic`, `log`, `tenant_storage_mib`, \
     `tenant_log_mib`, `all_logs_mib`, `log_days`, `api_connections`, \
     `api_connections_without_token`, `api_connections_from_address` or `api_connections_of_token`";
/// Most connections of the API that can be set: each costs a descriptor and up to a few hundred KiB of buffers.
const MAX_API_CONNECTIONS: usize = 65_536;

/// Limits on the number of concurrent connections of the API. Connections that have shown a valid
/// token have slots of their own, `all` less `without_token`; connections without one share
/// `without_token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiLimits {
    /// All connections.
    pub all: usize,
    /// Connections without a valid token; a new one evicts the oldest.
    pub without_token: usize,
    /// Connections without a token from one address, or from one IPv6 network of 64 bits.
    pub from_address: usize,
    /// Connections with the same token.
    pub of_token: usize,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            all: 512,
            without_token: 256,
            from_address: 128,
            of_token: 32,
        }
    }
}

/// The settings of `casemate-control serve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Folder of the state, made by `casemate-control init`.
    pub state: PathBuf,
    /// Where the HTTPS API listens; port 0 asks the kernel for one.
    pub api: SocketAddr,
    /// Where nodes connect; port 0 asks the kernel for one.
    pub quic: SocketAddr,
    /// `host:port` under which nodes reach `quic`; without it, the address that `quic` is bound to.
    pub public_quic: Option<String>,
    /// Most that is stored for one tenant, MiB: bundles, releases and sealed secrets.
    pub tenant_storage_mib: u64,
    /// Connections of the API.
    pub api_limits: ApiLimits,
    /// Limits on the stored logs of tenants.
    pub log_limits: LogLimits,
    /// Supported versions of the push protocol: this program's, unless a test plays an earlier or a
    /// later one.
    pub push_versions: Versions,
    /// Log filter; `CASEMATE_LOG` takes precedence over it.
    pub log: Option<String>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// All mistakes in the file.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::config(format!("cannot read {shown}: {error}")))?;
        if text.len() > MAX_FILE_BYTES {
            return Err(Failure::config(format!(
                "{shown}: expected at most {MAX_FILE_BYTES} bytes, got {}",
                text.len()
            )));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let parsed = Self::parse(&text, folder);
        parsed.map_err(|mistakes| {
            let lines = mistakes
                .into_iter()
                .map(|mistake| format!("{shown}:{mistake}"));
            Failure::config(lines.collect::<Vec<_>>().join("\n"))
        })
    }

    /// Parses the text; a relative `state` is relative to `folder`. Mistakes are `line: what`.
    fn parse(text: &str, folder: &Path) -> Result<Self, Vec<String>> {
        let mut settings = Settings::read(text);
        let (api, quic) = (settings.address("api"), settings.address("quic"));
        settings.check_texts();
        let Settings {
            mut mistakes,
            mut texts,
            numbers,
        } = settings;
        mistakes.sort();
        let state = texts.remove("state").map(|(_, state)| folder.join(state));
        match (state, api, quic) {
            (Some(state), Some(api), Some(quic)) if mistakes.is_empty() => Ok(Self {
                state,
                api,
                quic,
                public_quic: texts.remove("public_quic").map(|(_, address)| address),
                tenant_storage_mib: numbers.tenant_storage_mib,
                api_limits: numbers.api_limits,
                log_limits: numbers.log_limits,
                push_versions: VERSIONS,
                log: texts.remove("log").map(|(_, filter)| filter),
            }),
            _ => Err(mistakes
                .into_iter()
                .map(|(line, what)| format!("{line}: {what}"))
                .collect()),
        }
    }
}

/// The settings of a file, each with its line, and the mistakes that were found so far.
struct Settings {
    mistakes: Vec<(usize, String)>,
    texts: BTreeMap<String, (usize, String)>,
    numbers: Numbers,
}

impl Settings {
    fn read(text: &str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let line = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
        let at = |error: &toml::de::Error| error.span().map_or(1, |span| line(span.start));
        let mut mistakes: Vec<_> = errors
            .iter()
            .map(|error| (at(error), error.message().to_owned()))
            .collect();
        let mut texts = BTreeMap::new();
        let mut numbers = Numbers::default();
        for (key, value) in table.get_ref() {
            let (number, name) = (line(key.span().start), key.get_ref().as_ref());
            match (name, value.get_ref()) {
                ("state" | "api" | "quic" | "public_quic" | "log", DeValue::String(value)) => {
                    texts.insert(name.to_owned(), (number, value.to_string()));
                }
                ("state" | "api" | "quic" | "public_quic" | "log", _) => {
                    mistakes.push((number, format!("`{name}`: expected a text in quotes")));
                }
                (name, value) => match numbers.set(name, value, number) {
                    Some(Ok(())) => {}
                    Some(Err(mistake)) => mistakes.push((number, mistake)),
                    None => mistakes.push((number, format!("unknown key `{name}`: {KEYS}"))),
                },
            }
        }
        mistakes.extend(numbers.contradictions());
        let named = |name: &str| {
            let mut keys = table.get_ref().keys();
            keys.any(|key: &Spanned<_>| *key.get_ref() == *name)
        };
        let needed = ["state", "api", "quic"].into_iter();
        for name in needed.filter(|name| !named(name)) {
            mistakes.push((1, format!("`{name}` is missing")));
        }
        Self {
            mistakes,
            texts,
            numbers,
        }
    }

    fn address(&mut self, name: &str) -> Option<SocketAddr> {
        let (number, text) = self.texts.get(name)?;
        let parsed = text.parse::<SocketAddr>();
        let wrong = |_| {
            self.mistakes.push((
                *number,
                format!("`{name}`: expected an address such as 127.0.0.1:8443, got {text:?}"),
            ));
        };
        parsed.map_err(wrong).ok()
    }

    fn check_texts(&mut self) {
        let public = self.texts.get("public_quic");
        if let Some((number, text)) = public.filter(|(_, text)| !is_host_and_port(text)) {
            let what = format!("`public_quic`: expected host:port, got {text:?}");
            self.mistakes.push((*number, what));
        }
        let state = self.texts.get("state");
        if let Some((number, _)) = state.filter(|(_, text)| text.is_empty()) {
            let what = "`state`: expected a folder".to_owned();
            self.mistakes.push((*number, what));
        }
    }
}

/// The numeric settings, and the lines of those that the file sets.
struct Numbers {
    tenant_storage_mib: u64,
    log_limits: LogLimits,
    api_limits: ApiLimits,
    lines: BTreeMap<String, usize>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            tenant_storage_mib: TENANT_STORAGE_MIB,
            log_limits: LogLimits::default(),
            api_limits: ApiLimits::default(),
            lines: BTreeMap::new(),
        }
    }
}

impl Numbers {
    /// Sets a value; returns the mistake in it, or `None` if no such setting exists.
    fn set(&mut self, name: &str, value: &DeValue<'_>, line: usize) -> Option<Result<(), String>> {
        let most = match name {
            "tenant_storage_mib" | "tenant_log_mib" | "all_logs_mib" => MAX_TENANT_STORAGE_MIB,
            "log_days" => MAX_LOG_DAYS,
            _ => MAX_API_CONNECTIONS as u64,
        };
        let limits = &mut self.api_limits;
        let logs = &mut self.log_limits;
        let storage = match name {
            "tenant_storage_mib" => Some(&mut self.tenant_storage_mib),
            "tenant_log_mib" => Some(&mut logs.tenant_mib),
            "all_logs_mib" => Some(&mut logs.all_mib),
            "log_days" => Some(&mut logs.days),
            _ => None,
        };
        let slot = match name {
            "tenant_storage_mib" | "tenant_log_mib" | "all_logs_mib" | "log_days" => None,
            "api_connections" => Some(&mut limits.all),
            "api_connections_without_token" => Some(&mut limits.without_token),
            "api_connections_from_address" => Some(&mut limits.from_address),
            "api_connections_of_token" => Some(&mut limits.of_token),
            _ => return None,
        };
        let Some(parsed) = parse_number(value).filter(|number| (1..=most).contains(number)) else {
            return Some(Err(format!("`{name}`: expected a number from 1 to {most}")));
        };
        match (slot, storage, usize::try_from(parsed)) {
            (Some(slot), _, Ok(parsed)) => *slot = parsed,
            (_, Some(storage), _) => *storage = parsed,
            _ => {}
        }
        self.lines.insert(name.to_owned(), line);
        Some(Ok(()))
    }

    /// Limits that leave no slots for some kind of client, each with the line of the setting that
    /// is too large.
    fn contradictions(&self) -> Vec<(usize, String)> {
        let ApiLimits {
            all,
            without_token,
            from_address,
            of_token,
        } = self.api_limits;
        let with_token = all.saturating_sub(without_token);
        // Two slots: one for operators, one for all other tokens.
        let checks = [
            (
                with_token >= 2,
                ["api_connections_without_token", "api_connections"],
                format!(
                    "expected `api_connections_without_token` to be at most {}, which is \
                     `api_connections` less 2, so that slots for connections with a token remain; got {without_token}",
                    all.saturating_sub(2)
                ),
            ),
            (
                from_address <= without_token,
                [
                    "api_connections_from_address",
                    "api_connections_without_token",
                ],
                format!(
                    "expected `api_connections_from_address` to be at most \
                     `api_connections_without_token`, which is {without_token}; got {from_address}"
                ),
            ),
            (
                with_token < 2 || of_token <= with_token,
                ["api_connections_of_token", "api_connections"],
                format!(
                    "expected `api_connections_of_token` to be at most `api_connections` less \
                     `api_connections_without_token`, which is {with_token}; got {of_token}"
                ),
            ),
        ];
        let line = |names: [&str; 2]| names.iter().find_map(|name| self.lines.get(*name));
        let broken = checks.into_iter().filter(|(holds, ..)| !holds);
        broken
            .map(|(_, names, message)| (line(names).copied().unwrap_or(1), message))
            .collect()
    }
}

fn parse_number(value: &DeValue<'_>) -> Option<u64> {
    let DeValue::Integer(value) = value else {
        return None;
    };
    u64::from_str_radix(value.as_str(), value.radix()).ok()
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let is_host =
        !host.is_empty() && !host.contains(|letter: char| letter.is_whitespace() || letter == '/');
    is_host && text.len() <= MAX_ADDRESS_BYTES && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file() {
        let text = "state = \"data\"\napi = \"127.0.0.1:0\"\nquic = \"[::1]:7443\"\npublic_quic = \"control.test:7443\"\n";
        let config = Config::parse(text, Path::new("/etc/casemate")).unwrap();
        assert_eq!(config.state, Path::new("/etc/casemate/data"));
        assert_eq!(config.public_quic.as_deref(), Some("control.test:7443"));
        assert_eq!((config.api.port(), config.log), (0, None));
        assert_eq!(config.tenant_storage_mib, TENANT_STORAGE_MIB);
        let set = Config::parse(
            &format!("{text}tenant_storage_mib = 1_000\n"),
            Path::new(""),
        );
        assert_eq!(set.unwrap().tenant_storage_mib, 1000);
        for wrong in ["0", "-1", "\"1 GiB\"", "1.5", "2_000_000"] {
            let text = format!("{text}tenant_storage_mib = {wrong}\n");
            let mistakes = Config::parse(&text, Path::new("")).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{wrong}: {mistakes:?}");
            assert!(
                mistakes[0].starts_with("5: `tenant_storage_mib`"),
                "{mistakes:?}"
            );
        }
    }

    #[test]
    fn limits_of_connections_leave_slots_for_those_with_a_token() {
        let base = "state = \"x\"\napi = \"127.0.0.1:0\"\nquic = \"127.0.0.1:0\"\n";
        let parse = |text: &str| Config::parse(&format!("{base}{text}"), Path::new(""));
        let set = parse("api_connections = 160\napi_connections_without_token = 128\n");
        let expected = ApiLimits {
            all: 160,
            without_token: 128,
            ..ApiLimits::default()
        };
        assert_eq!(set.unwrap().api_limits, expected);
        for (text, lines) in [
            ("api_connections = 257\n", vec!["4"]),
            (
                "api_connections_of_token = 300\napi_connections = 0\n",
                vec!["4", "5"],
            ),
            (
                "api_connections_without_token = 10\napi_connections_from_address = 11\napi_connections_of_token = 503\n",
                vec!["5", "6"],
            ),
        ] {
            let mistakes = parse(text).unwrap_err();
            let found: Vec<_> = mistakes
                .iter()
                .map(|mistake| mistake.split(':').next().unwrap())
                .collect();
            assert_eq!(found, lines, "{mistakes:?}");
        }
    }

    #[test]
    fn all_mistakes_at_once_with_their_lines() {
        let text = "# one\nstate = 7\napi = \"nowhere\"\nsate = \"x\"\npublic_quic = \"host\"\n";
        let mistakes = Config::parse(text, Path::new("")).unwrap_err();
        let lines: Vec<_> = mistakes
            .iter()
            .map(|mistake| mistake.split(':').next().unwrap())
            .collect();
        assert_eq!(lines, ["1", "2", "3", "4", "5"], "{mistakes:?}");
        assert!(mistakes[0].contains("`quic` is missing"));
        assert!(mistakes[3].contains("unknown key `sate`"));
    }

    #[test]
    fn broken_syntax_has_a_line_too() {
        let mistakes = Config::parse("state = \"x\"\napi = \n", Path::new("")).unwrap_err();
        assert!(
            mistakes.iter().any(|mistake| mistake.starts_with("2: ")),
            "{mistakes:?}"
        );
    }
}
