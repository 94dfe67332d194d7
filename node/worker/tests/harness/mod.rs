//! Plays supervisor, gateway and vault for a real worker.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use casemate_channel::control::{Control, pair as control_pair, sealed_memfd};
use casemate_channel::{
    Acceptor, Exchange, Incoming, Opener, RecvBody, StreamError, acceptor, opener, pair,
};
use casemate_wire::control::Limits;
use casemate_wire::control::worker::{Binding, FromWorker, Load, Log, Outcome, ToWorker};
use casemate_wire::{Fields, RequestHead, ResponseHead};
use std::os::fd::AsFd;
use tokio::process::{Child, Command};

/// Bound for every wait: no answer takes longer, even from a debug build on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A worker with its function.
pub(crate) struct Function {
    pub(crate) control: Control<ToWorker, FromWorker>,
    pub(crate) gateway: Opener,
    pub(crate) vault: Acceptor,
    pub(crate) child: Child,
    pub(crate) logs: Vec<Log>,
    pub(crate) outcomes: Vec<Outcome>,
}

/// The caller's view of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Fields,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }
}

pub(crate) fn limits() -> Limits {
    Limits {
        cpu_time_ms: 2000,
        wall_time_ms: 40_000,
        heap_mib: 64,
        subrequests: 8,
        concurrency: 16,
    }
}

pub(crate) fn load() -> Load {
    Load {
        function: "hello".into(),
        entry: "main.js".into(),
        limits: limits(),
        vars: vec![("GREETING".into(), "hello".into())],
        bindings: vec![Binding {
            name: "stripe".into(),
            origin: "https://api.stripe.test".into(),
        }],
        dynamic_code: false,
    }
}

pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, *bytes)
            .expect("a plain name");
    }
    builder.into_inner().expect("memory")
}

/// Starts a worker and waits for `Ready`.
pub(crate) async fn spare() -> (Control<ToWorker, FromWorker>, Child) {
    let (ours, theirs) = control_pair().expect("a socket pair");
    let child = Command::new(env!("CARGO_BIN_EXE_casemate-worker"))
        .stdin(Stdio::from(theirs))
        .kill_on_drop(true)
        .spawn()
        .expect("the worker starts");
    let control: Control<ToWorker, FromWorker> = Control::new(ours).expect("in a runtime");
    match receive(&control).await {
        Some(FromWorker::Ready { layers }) => {
            let seccomp = layers.iter().find(|layer| layer.layer == "seccomp");
            assert!(
                seccomp.is_some_and(|layer| layer.in_force),
                "no seccomp: {layers:?}"
            );
        }
        other => panic!("expected Ready, found {other:?}"),
    }
    (control, child)
}

/// The next message; `None` when the worker is gone.
pub(crate) async fn receive(control: &Control<ToWorker, FromWorker>) -> Option<FromWorker> {
    let received = tokio::time::timeout(PATIENCE, control.recv())
        .await
        .expect("a message in time");
    received
        .expect("a sound control channel")
        .map(|(message, _)| message)
}

/// Loads `archive`; the next message is the worker's answer.
pub(crate) async fn send_load(
    control: &Control<ToWorker, FromWorker>,
    load: Load,
    archive: &[u8],
) -> (Opener, Acceptor) {
    let bundle = sealed_memfd("bundle", archive).expect("a memfd");
    let (gateway, gateway_end) = pair().expect("a socket pair");
    let (vault, vault_end) = pair().expect("a socket pair");
    let fds = [bundle.as_fd(), gateway_end.as_fd(), vault_end.as_fd()];
    let message = ToWorker::Load(Box::new(load));
    control.send(&message, &fds).await.expect("Load is sent");
    (
        opener(gateway).expect("an opener"),
        acceptor(vault).expect("an acceptor"),
    )
}

/// Starts a worker with this source and the usual settings.
pub(crate) async fn function(source: &str) -> Function {
    function_with(&[("main.js", source.as_bytes())], load()).await
}

pub(crate) async fn function_with(files: &[(&str, &[u8])], load: Load) -> Function {
    let (control, child) = spare().await;
    let (gateway, vault) = send_load(&control, load, &archive(files)).await;
    let mut logs = Vec::new();
    loop {
        match receive(&control).await {
            Some(FromWorker::Loaded { .. }) => break,
            Some(FromWorker::Log(log)) => logs.push(log),
            other => panic!("expected Loaded, found {other:?}"),
        }
    }
    Function {
        control,
        gateway,
        vault,
        child,
        logs,
        outcomes: Vec::new(),
    }
}

pub(crate) fn head(method: &str, url: &str) -> RequestHead {
    let fields = Fields::default()
        .with(":request", "r1")
        .with(":client", "192.0.2.1")
        .with("host", "fn.test");
    RequestHead {
        method: method.into(),
        target: url.into(),
        fields,
    }
}

pub(crate) async fn whole(body: &mut RecvBody) -> Result<Bytes, StreamError> {
    let mut all = Vec::new();
    while let Some(piece) = body.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all.into())
}

impl Function {
    pub(crate) fn open(&self, head: RequestHead, end: bool) -> Exchange {
        self.gateway.open(head, end).expect("room for a stream")
    }

    /// Sends a request without a body and waits for its end.
    pub(crate) async fn ask(&self, head: RequestHead) -> Result<Answer, StreamError> {
        self.ask_with(head, None).await
    }

    pub(crate) async fn ask_with(
        &self,
        head: RequestHead,
        body: Option<&'static [u8]>,
    ) -> Result<Answer, StreamError> {
        tokio::time::timeout(PATIENCE, async {
            let mut exchange = self.open(head, body.is_none());
            if let Some(body) = body {
                exchange.body.send(Bytes::from_static(body)).await?;
                exchange.body.finish();
            }
            let (ResponseHead { status, fields }, mut body) = exchange.response.head().await?;
            Ok(Answer {
                status,
                fields,
                body: whole(&mut body).await?,
            })
        })
        .await
        .expect("an answer in time")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let answer = self
            .ask(head("GET", &format!("https://fn.test{path}")))
            .await;
        answer.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The next outcome. Log lines before it are kept, and so are outcomes before a log line.
    pub(crate) async fn outcome(&mut self) -> Outcome {
        loop {
            if !self.outcomes.is_empty() {
                return self.outcomes.remove(0);
            }
            match receive(&self.control).await {
                Some(FromWorker::Outcomes(outcomes)) => self.outcomes.extend(outcomes),
                Some(FromWorker::Log(log)) => self.logs.push(log),
                other => panic!("expected an outcome, found {other:?}"),
            }
        }
    }

    /// The next console line.
    pub(crate) async fn log(&mut self) -> Log {
        loop {
            if !self.logs.is_empty() {
                return self.logs.remove(0);
            }
            match receive(&self.control).await {
                Some(FromWorker::Log(log)) => return log,
                Some(FromWorker::Outcomes(outcomes)) => self.outcomes.extend(outcomes),
                other => panic!("expected a line, found {other:?}"),
            }
        }
    }

    /// Waits for the end: the worker's last message and its exit code.
    pub(crate) async fn end(&mut self) -> (Option<FromWorker>, Option<i32>) {
        let mut last = None;
        while let Some(message) = receive(&self.control).await {
            last = Some(message);
        }
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        (
            last,
            status
                .expect("the worker ends in time")
                .expect("a status")
                .code(),
        )
    }
}

/// This head with `name` as its request id.
pub(crate) fn tell_apart(mut head: RequestHead, name: &str) -> RequestHead {
    let others = head.fields.iter().skip(1);
    head.fields = std::iter::once((":request", name.as_bytes()))
        .chain(others)
        .collect();
    head
}

/// Makes the call that the path names and shows its result.
pub(crate) const CALLER: &str = r#"export default {
    async fetch(request, env) {
        const { to, binding, ...init } = await request.json();
        try {
            const response = binding ? await env[binding].fetch(to, init) : await fetch(to, init);
            return Response.json({
                status: response.status, url: response.url, redirected: response.redirected,
                header: response.headers.get("x-answer"), text: await response.text(),
            });
        } catch (error) {
            return Response.json({ name: error.name, code: error.code, message: error.message });
        }
    },
};"#;

/// Answers one call of the worker.
pub(crate) async fn answer(
    incoming: Incoming,
    status: u16,
    fields: &[(&str, &str)],
    body: &'static str,
) {
    let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
    let head = ResponseHead {
        status,
        fields: fields.collect(),
    };
    let mut sending = incoming.reply.send(&head, body.is_empty());
    if !body.is_empty() {
        sending
            .send(Bytes::from_static(body.as_bytes()))
            .await
            .expect("a worker that goes on");
        sending.finish();
    }
}

/// Makes a call through [`CALLER`], and plays the vault with `vault`.
pub(crate) async fn call(
    worker: &mut Function,
    order: &'static str,
    vault: impl AsyncFnOnce(&mut casemate_channel::Acceptor),
) -> String {
    let request = tell_apart(head("POST", "https://fn.test/"), "r7");
    let mut exchange = worker.open(request, false);
    exchange
        .body
        .send(Bytes::from_static(order.as_bytes()))
        .await
        .expect("a worker that goes on");
    exchange.body.finish();
    let played = tokio::time::timeout(PATIENCE, vault(&mut worker.vault)).await;
    played.expect("the calls that were expected, in time");
    let (_, mut body) = exchange
        .response
        .head()
        .await
        .expect("a worker that goes on");
    String::from_utf8(
        whole(&mut body)
            .await
            .expect("a worker that goes on")
            .to_vec(),
    )
    .expect("a worker that goes on")
}
