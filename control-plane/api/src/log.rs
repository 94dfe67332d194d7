//! Log records of a tenant's functions, one JSON object a line.

use std::fmt;
use std::str::FromStr;

use casemate_trust::name::Name;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogRecord {
    /// Number of the record, which rises for each tenant, with gaps; for `since`.
    pub seq: u64,
    /// Unix time in milliseconds, by the node's clock.
    pub time_ms: u64,
    /// The node.
    #[schema(value_type = String)]
    pub node: Name,
    /// The function.
    #[schema(value_type = String)]
    pub function: Name,
    /// The request, if the record concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// Text.
    pub message: String,
    /// Error class, such as `exceeded_cpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The records to return.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    /// Whether to continue with new records.
    #[serde(default)]
    pub follow: bool,
    /// Only records of this function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<Name>,
    /// Only records after this `seq`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Only records from this time on, Unix milliseconds by the node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Only records before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Only records of this level and above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Only requests that were answered with this status, or a class such as `5xx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusPattern>,
    /// Only records about this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Only records whose text, failure or request contains this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grep: Option<String>,
    /// Only records of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
}

/// Severity of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Details for finding a fault.
    Debug,
    /// A usual event.
    Info,
    /// An event that needs attention.
    Warn,
    /// A failure.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        })
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warn" => Ok(Self::Warn),
            "error" => Ok(Self::Error),
            _ => Err(format!("expected debug, info, warn or error, got {text:?}")),
        }
    }
}

/// A status, or a class of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusPattern {
    /// Exactly this status.
    Exactly(u16),
    /// Statuses that begin with this digit.
    Class(u16),
}

impl StatusPattern {
    /// Whether a status matches.
    pub const fn matches(self, status: u16) -> bool {
        match self {
            Self::Exactly(wanted) => status == wanted,
            Self::Class(class) => status / 100 == class,
        }
    }
}

impl FromStr for StatusPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("expected a status such as 404, or a class such as 5xx, got {text:?}");
        if let Some(class) = text.strip_suffix("xx") {
            let class = class.parse().map_err(|_| wrong())?;
            return if (1..=5).contains(&class) {
                Ok(Self::Class(class))
            } else {
                Err(wrong())
            };
        }
        let status = text.parse().map_err(|_| wrong())?;
        if (100..=599).contains(&status) {
            Ok(Self::Exactly(status))
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for StatusPattern {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(status) => write!(to, "{status}"),
            Self::Class(class) => write!(to, "{class}xx"),
        }
    }
}

impl Serialize for StatusPattern {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StatusPattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl LogRecord {
    /// The answer's status in a record of the form `GET /path 200 1234 us`.
    pub fn status(&self) -> Option<u16> {
        let mut words = self.message.rsplitn(4, ' ');
        let (unit, time, status) = (words.next()?, words.next()?, words.next()?);
        let is_time = unit == "us" && time.bytes().all(|byte| byte.is_ascii_digit());
        let status = status
            .parse()
            .ok()
            .filter(|status| (100..=599).contains(status));
        self.request.as_ref().and(status).filter(|_| is_time)
    }
}

impl LogQuery {
    /// Whether the query searches all stored records; otherwise it asks for the newest ones.
    pub fn is_search(&self) -> bool {
        self.since_ms.is_some()
            || self.until_ms.is_some()
            || self.level.is_some()
            || self.status.is_some()
            || self.request.is_some()
            || self.grep.is_some()
            || self.node.is_some()
    }

    /// Whether a record matches.
    pub fn wants(&self, record: &LogRecord) -> bool {
        let holds = |part: &String| {
            let has = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains(part));
            record.message.contains(part) || has(&record.failure) || has(&record.request)
        };
        let level = || record.level.parse::<Level>().unwrap_or(Level::Info);
        self.function
            .as_ref()
            .is_none_or(|function| *function == record.function)
            && self.node.as_ref().is_none_or(|node| *node == record.node)
            && self.since_ms.is_none_or(|since| record.time_ms >= since)
            && self.until_ms.is_none_or(|until| record.time_ms < until)
            && self.level.is_none_or(|least| level() >= least)
            && (self.request.is_none() || self.request == record.request)
            && self.grep.as_ref().is_none_or(holds)
            && self
                .status
                .is_none_or(|wanted| record.status().is_some_and(|got| wanted.matches(got)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> LogRecord {
        LogRecord {
            seq: 7,
            time_ms: 1000,
            node: "edge-1".parse().unwrap(),
            function: "web".parse().unwrap(),
            request: Some("r1".into()),
            level: "warn".into(),
            message: message.into(),
            failure: Some("exceeded_cpu".into()),
        }
    }

    #[test]
    fn a_status_is_that_of_an_answered_request() {
        assert_eq!(record("GET /a b 503 12 us").status(), Some(503));
        for other in [
            "GET / 503 12 ms",
            "503",
            "GET / 1000 1 us",
            "GET / 200 1x us",
            "",
        ] {
            assert_eq!(record(other).status(), None, "{other}");
        }
        let by_function = LogRecord {
            request: None,
            ..record("GET / 503 12 us")
        };
        assert_eq!(by_function.status(), None);
    }

    #[test]
    fn each_filter_lets_through_what_it_names() {
        let record = record("GET /cart 503 12 us");
        let wants = |query: &str| {
            let query: LogQuery = serde_json::from_str(query).unwrap();
            query.wants(&record)
        };
        for (right, wrong) in [
            (r#"{"function":"web"}"#, r#"{"function":"shop"}"#),
            (r#"{"node":"edge-1"}"#, r#"{"node":"edge-2"}"#),
            (r#"{"since_ms":1000}"#, r#"{"since_ms":1001}"#),
            (r#"{"until_ms":1001}"#, r#"{"until_ms":1000}"#),
            (r#"{"level":"info"}"#, r#"{"level":"error"}"#),
            (r#"{"status":"5xx"}"#, r#"{"status":"4xx"}"#),
            (r#"{"status":"503"}"#, r#"{"status":"500"}"#),
            (r#"{"request":"r1"}"#, r#"{"request":"r"}"#),
            (r#"{"grep":"cart"}"#, r#"{"grep":"Cart"}"#),
            (r#"{"grep":"exceeded"}"#, r#"{"grep":"r2"}"#),
        ] {
            assert!(wants(right) && !wants(wrong), "{right} {wrong}");
        }
        for odd in ["6xx", "099", "600", "x", "5x", ""] {
            assert!(odd.parse::<StatusPattern>().is_err(), "{odd}");
        }
        assert_eq!("4xx".parse::<StatusPattern>().unwrap().to_string(), "4xx");
    }
}
