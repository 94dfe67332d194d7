//! `casemate logs`.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use casemate_api::log::{LogQuery, LogRecord};
use casemate_api::tenant::TenantStatus;
use casemate_trust::id::TenantId;
use casemate_trust::name::Name;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use owo_colors::OwoColorize as _;
use url::form_urlencoded;

use crate::args::Logs;
use crate::error::{Code, Error};
use crate::machine::{date_ms, now, printable, printable_lines};
use crate::session::{Context, Session};

/// Longest pause before a broken stream is opened again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Pauses before a broken stream is opened again; they have no end.
const REOPEN: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(500))
    .with_max_delay(LONGEST_PAUSE)
    .without_max_times();
/// Number of records that are shown without a search.
const LAST: usize = 100;
/// Longest line that is read, bytes.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// `casemate logs`
pub(super) async fn logs(cx: &Context, args: &Logs) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let id = session.own_tenant(args.whose.tenant.as_ref()).await?;
    if let Some(name) = &args.function {
        require_function(&mut session, &id, name).await?;
    }
    session.unlock();
    let mut query = query(args);
    let path = |query: &LogQuery| format!("/v1/tenants/{id}/logs?{}", encoded(query));
    let backlog = session.api.get_bytes(&path(&query)).await?;
    let records: Vec<LogRecord> = backlog
        .split(|byte| *byte == b'\n')
        .filter_map(read)
        .collect();
    let mut since = records.last().map(|record| record.seq);
    let last = match args.last {
        Some(last) => last,
        None if query.is_search() => usize::MAX,
        None => LAST,
    };
    for record in records.iter().skip(records.len().saturating_sub(last)) {
        show(cx, record)?;
    }
    if !args.follow {
        return Ok(());
    }
    query.follow = true;
    let mut pauses = REOPEN.build();
    loop {
        query.since = since;
        let pause = match session.api.stream(&path(&query)).await {
            Ok(stream) => {
                follow(cx, stream, &mut since).await?;
                cx.output
                    .warn("the stream of logs was interrupted; opening it again");
                pauses = REOPEN.build();
                pauses.next().unwrap_or(LONGEST_PAUSE)
            }
            Err(error) if error.code() == Code::Unreachable => {
                let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
                cx.output.warn(&format!(
                    "the control plane does not answer; trying again in {} s",
                    pause.as_secs().max(1)
                ));
                pause
            }
            Err(error) => return Err(error),
        };
        tokio::time::sleep(pause).await;
    }
}

/// The query that the arguments describe.
fn query(args: &Logs) -> LogQuery {
    let now_ms = now().saturating_mul(1000);
    LogQuery {
        follow: false,
        function: args.function.clone(),
        since: None,
        since_ms: args.since.map(|since| since.at_ms(now_ms)),
        until_ms: args.until.map(|until| until.at_ms(now_ms)),
        level: args.level,
        status: args.status,
        request: args.request.clone(),
        grep: args.grep.clone(),
        node: args.node.clone(),
    }
}

/// A query as it is written in a URL.
fn encoded(query: &LogQuery) -> String {
    let mut text = form_urlencoded::Serializer::new(String::new());
    text.append_pair("follow", &query.follow.to_string());
    let mut pair = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.append_pair(name, &value);
        }
    };
    pair("function", query.function.as_ref().map(Name::to_string));
    pair("since", query.since.map(|since| since.to_string()));
    pair("since_ms", query.since_ms.map(|since| since.to_string()));
    pair("until_ms", query.until_ms.map(|until| until.to_string()));
    pair("level", query.level.map(|level| level.to_string()));
    pair("status", query.status.map(|status| status.to_string()));
    pair("request", query.request.clone());
    pair("grep", query.grep.clone());
    pair("node", query.node.as_ref().map(Name::to_string));
    text.finish()
}

/// Refuses a mistyped name: it has no records, and the command would wait for them in vain.
async fn require_function(
    session: &mut Session<'_>,
    tenant: &TenantId,
    name: &Name,
) -> Result<(), Error> {
    let path = format!("/v1/tenants/{tenant}/status");
    let status: TenantStatus = session.api.get(&path).await?;
    if status.functions.contains_key(name) {
        return Ok(());
    }
    let known: Vec<_> = status.functions.keys().map(Name::as_str).collect();
    let next = if known.is_empty() {
        "`casemate deploy` makes one; without a name, `casemate logs` shows the records of those \
         that were removed"
            .to_owned()
    } else {
        format!(
            "there are {}; without a name, `casemate logs` shows the records of all, and of those \
             that were removed",
            known.join(", ")
        )
    };
    Err(Error::new(
        Code::NotFound,
        format!("there is no function {name}"),
        next,
    ))
}

async fn follow(cx: &Context, mut stream: Incoming, since: &mut Option<u64>) -> Result<(), Error> {
    let mut line = Vec::new();
    while let Some(Ok(frame)) = stream.frame().await {
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        for byte in bytes {
            if byte != b'\n' {
                if line.len() < MAX_LINE_BYTES {
                    line.push(byte);
                }
                continue;
            }
            if let Some(record) = read(&line) {
                *since = Some(record.seq);
                show(cx, &record)?;
            }
            line.clear();
        }
    }
    Ok(())
}

/// Parses a record; empty lines keep an idle stream alive.
fn read(line: &[u8]) -> Option<LogRecord> {
    serde_json::from_slice(line).ok()
}

fn show(cx: &Context, record: &LogRecord) -> Result<(), Error> {
    cx.output.record(record, || {
        let level = match record.level.as_str() {
            "error" => "error".red().to_string(),
            "warn" => "warn ".yellow().to_string(),
            "info" => "info ".green().to_string(),
            _ => "debug".dimmed().to_string(),
        };
        let failure = record
            .failure
            .as_deref()
            .map(|failure| format!(" [{}]", printable(failure)));
        let request = record
            .request
            .as_deref()
            .map(|id| format!(" ({})", printable(id)));
        format!(
            "{} {level} {}/{}{} {}{}",
            date_ms(record.time_ms).dimmed(),
            record.node,
            record.function,
            failure.unwrap_or_default(),
            printable_lines(&record.message).replace('\n', "\n    "),
            request.unwrap_or_default().dimmed()
        )
    })
}
