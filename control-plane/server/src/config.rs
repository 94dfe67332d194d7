//! The configuration file: all mistakes at once, each with its line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use casemate_trust::join::MAX_ADDRESS_BYTES;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::failure::Failure;

/// Storage of a tenant where the file says nothing, MiB: a hundred of the largest bundles, so that ten functions keep all the
/// releases that they may go back to.
const TENANT_STORAGE_MIB: u64 = 1024;
/// Most that can be set, MiB: a TiB. What is meant to be more is a mistake in the unit.
const MAX_TENANT_STORAGE_MIB: u64 = 1024 * 1024;
/// Largest file, bytes: six settings and many comments.
const MAX_FILE_BYTES: usize = 64 * 1024;
const KEYS: &str = "expected `state`, `api`, `quic`, `public_quic`, `tenant_storage_mib` or `log`";

/// What `casemate-control serve` needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Folder of the state, made by `casemate-control init`.
    pub state: PathBuf,
    /// Where the HTTPS API listens; port 0 asks the kernel for one.
    pub api: SocketAddr,
    /// Where nodes connect; port 0 asks the kernel for one.
    pub quic: SocketAddr,
    /// `host:port` under which nodes reach `quic`; without it, what `quic` is bound to.
    pub public_quic: Option<String>,
    /// What is stored for one tenant at most, MiB: bundles, releases and sealed secrets.
    pub tenant_storage_mib: u64,
    /// Log filter; `CASEMATE_LOG` goes before it.
    pub log: Option<String>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
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

    /// From text; a relative `state` is relative to `folder`. Mistakes are `line: what`.
    fn parse(text: &str, folder: &Path) -> Result<Self, Vec<String>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let line = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
        let at = |error: &toml::de::Error| error.span().map_or(1, |span| line(span.start));
        let mut mistakes: Vec<_> = errors
            .iter()
            .map(|error| (at(error), error.message().to_owned()))
            .collect();
        let mut found: BTreeMap<String, (usize, String)> = BTreeMap::new();
        let mut tenant_storage_mib = TENANT_STORAGE_MIB;
        for (key, value) in table.get_ref() {
            let number = line(key.span().start);
            match (key.get_ref().as_ref(), value.get_ref()) {
                (
                    name @ ("state" | "api" | "quic" | "public_quic" | "log"),
                    DeValue::String(value),
                ) => {
                    found.insert(name.to_owned(), (number, value.to_string()));
                }
                ("state" | "api" | "quic" | "public_quic" | "log", _) => {
                    mistakes.push((
                        number,
                        format!("`{}`: expected a text in quotes", key.get_ref()),
                    ));
                }
                ("tenant_storage_mib", value) => match storage_mib(value) {
                    Some(mib) => tenant_storage_mib = mib,
                    None => mistakes.push((
                        number,
                        format!("`tenant_storage_mib`: expected a number from 1 to {MAX_TENANT_STORAGE_MIB}"),
                    )),
                },
                (other, _) => mistakes.push((number, format!("unknown key `{other}`: {KEYS}"))),
            }
        }
        let named = |name: &str| {
            table
                .get_ref()
                .keys()
                .any(|key: &Spanned<_>| *key.get_ref() == *name)
        };
        for name in ["state", "api", "quic"]
            .into_iter()
            .filter(|name| !named(name))
        {
            mistakes.push((1, format!("`{name}` is missing")));
        }
        let mut address = |name: &str| {
            let (number, text) = found.get(name)?;
            let parsed = text.parse::<SocketAddr>();
            let wrong = |_| {
                mistakes.push((
                    *number,
                    format!("`{name}`: expected an address such as 127.0.0.1:8443, got {text:?}"),
                ));
            };
            parsed.map_err(wrong).ok()
        };
        let (api, quic) = (address("api"), address("quic"));
        if let Some((number, text)) = found
            .get("public_quic")
            .filter(|(_, text)| !is_host_and_port(text))
        {
            mistakes.push((
                *number,
                format!("`public_quic`: expected host:port, got {text:?}"),
            ));
        }
        if let Some((number, _)) = found.get("state").filter(|(_, text)| text.is_empty()) {
            mistakes.push((*number, "`state`: expected a folder".to_owned()));
        }
        mistakes.sort();
        let state = found.remove("state").map(|(_, state)| folder.join(state));
        match (state, api, quic) {
            (Some(state), Some(api), Some(quic)) if mistakes.is_empty() => Ok(Self {
                state,
                api,
                quic,
                public_quic: found.remove("public_quic").map(|(_, address)| address),
                tenant_storage_mib,
                log: found.remove("log").map(|(_, filter)| filter),
            }),
            _ => Err(mistakes
                .into_iter()
                .map(|(line, what)| format!("{line}: {what}"))
                .collect()),
        }
    }
}

fn storage_mib(value: &DeValue<'_>) -> Option<u64> {
    let DeValue::Integer(value) = value else {
        return None;
    };
    let mib = u64::from_str_radix(value.as_str(), value.radix()).ok()?;
    (1..=MAX_TENANT_STORAGE_MIB).contains(&mib).then_some(mib)
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
