//! `casemate-init`: the first program of a node's image. It makes the system the root, mounts what
//! the kernel offers, loads modules, reads the seed, finds or makes the state partition, brings up
//! the network, and then runs the node and says on the console how it is.
//!
//! Nothing of it answers to anybody: there is no shell, no login and no port. What goes wrong is
//! shown on the console, with what to do; what cannot be gone on from starts the machine again
//! after ten seconds.
#![forbid(unsafe_code)]

mod boot_partition;
mod button;
mod clock;
mod console;
mod disk;
mod figures;
mod files;
mod image;
mod kernel;
mod network;
mod node;
mod node_state;
mod recovery;
mod root;
mod secure_boot;
mod seed;
mod settings;
mod storage;
mod tpm;
mod update;

use std::process::ExitCode;
use std::time::Duration;

use rustix::system::{RebootCommand, reboot};
use tokio::runtime::{Builder, Runtime};

use boot_partition::BootPartition;
use console::Page;
use image::Image;
use node::Waited;
use seed::{RECOVERY_KEY, Seed};
use settings::Settings;
use storage::{Boot, Storage, Terms};
use update::Update;

/// Time to read what went wrong.
const BEFORE_RESTART: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if std::process::id() != 1 {
        console::say(
            "casemate-init is the first program of an image; there is nothing else to use it for",
        );
        return casemate_config::EXIT_USAGE.into();
    }
    // What a panic says is on the console already: standard error leads there.
    let ended = std::panic::catch_unwind(run);
    let why = match ended {
        Ok(Ok(node::End::PowerOff)) => power(RebootCommand::PowerOff),
        Ok(Ok(node::End::Restart)) => power(RebootCommand::Restart),
        Ok(Err(failure)) => failure.to_string(),
        Err(_) => "a fault in casemate-init: please report what is above".to_owned(),
    };
    console::say(&format!(
        "casemate cannot go on: {why}. This machine starts again in {} seconds.",
        BEFORE_RESTART.as_secs()
    ));
    std::thread::sleep(BEFORE_RESTART);
    power(RebootCommand::Restart);
    ExitCode::FAILURE
}

/// Ends the machine; says why when it does not.
fn power(command: RebootCommand) -> String {
    rustix::fs::sync();
    match reboot(command) {
        Ok(()) => "the machine did not end".to_owned(),
        Err(error) => format!("the machine did not end: {error}"),
    }
}

/// What cannot be gone on from.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot {step}: {source}")]
    Step {
        step: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Module(String),
    #[error("{0} is no description of an image")]
    Image(&'static str),
}

impl Failure {
    fn step<E: Into<std::io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        let step = step.into();
        move |source| Self::Step {
            step,
            source: source.into(),
        }
    }
}

fn run() -> Result<node::End, Failure> {
    root::enter_system()?;
    kernel::mount_all()?;
    kernel::restrict()?;
    let image = Image::read()?;
    let mut page = Page::new(&image);
    for problem in kernel::load_modules() {
        page.problem(problem);
    }
    clock::not_before(u64::from(image.time));

    let state = match disk::mount(&mut page) {
        Ok(state) => state,
        Err(problem) => return wait(page, problem),
    };
    let mut seed = Seed::find(&mut page, settings::is_new(&state));
    let mut settings = Settings::take(&seed, &state, &mut page);
    let boot_partition = disk::boot_partition().map(|device| BootPartition { device });
    let mut update = Update::start(image.version, boot_partition, &state, &mut page);
    let storage = loop {
        let recovery = seed.items.get(RECOVERY_KEY).map(|item| &item.bytes[..]);
        let terms = Terms {
            recovery,
            require_tpm: settings.require_tpm,
            has_token: settings.has_token,
            is_trial: update.is_trial(),
        };
        let boot = Boot::look(image.version, &mut page);
        let why = match Storage::open(&state, boot, terms, &mut page) {
            Ok(storage) => break storage,
            Err(problem) => {
                let why = problem.what.clone();
                page.sealed(problem);
                why
            }
        };
        page.show();
        let before = recovery.map(<[u8]>::to_vec);
        let is_new = || {
            let now = Seed::read(&mut page);
            page.show();
            let given = now.items.get(RECOVERY_KEY).map(|item| item.bytes.clone());
            (given.is_some() && given != before).then_some(now)
        };
        let again = update.sealed_for();
        match runtime()?.block_on(node::wait(again, is_new))? {
            Waited::End(end) => return Ok(end),
            Waited::Found(found) => seed = found,
            // An image that is tried and does not open the key is no good; another fault may have
            // passed.
            Waited::LongEnough if update.is_trial() => {
                update.give_up(&why);
                return Ok(node::End::Restart);
            }
            Waited::LongEnough => {}
        }
    };
    if storage.was_recovered {
        let stays = seed.forget(RECOVERY_KEY);
        stays.into_iter().for_each(|problem| page.problem(problem));
    }
    if let Err(problem) = settings.offer(storage.key.as_ref(), storage.is_new, &mut page) {
        return wait(page, problem);
    }
    runtime()?.block_on(node::run(page, settings, seed, storage, update))
}

/// A state in which nothing can be served: it stays on the console for a while, and then the
/// machine looks again.
fn wait(mut page: Page, problem: console::Problem) -> Result<node::End, Failure> {
    page.state("waiting for the operator");
    page.problem(problem);
    page.show();
    match runtime()?.block_on(node::wait(node::LOOKS_AGAIN, || None::<()>))? {
        Waited::End(end) => Ok(end),
        Waited::Found(()) | Waited::LongEnough => Ok(node::End::Restart),
    }
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::step("start the runtime"))
}
