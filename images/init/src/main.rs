//! The program `casemate-init`, the first of a node's image. It switches to the system's root,
//! mounts the kernel's file systems, loads modules, reads the seed, finds or makes the state
//! partition, brings up the network, and then runs the node and shows its state on the console.
//!
//! Nothing on the machine accepts input from a person: there is no shell, no login and no port. The
//! console shows each fault and its remedy; after a fault without a remedy the machine restarts
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

/// Time to read the error on the console.
const BEFORE_RESTART: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if std::process::id() != 1 {
        console::say(
            "casemate-init is the first program of a node image and cannot be run by hand",
        );
        return casemate_config::EXIT_USAGE.into();
    }
    // The panic's message is on the console already, because standard error leads there.
    let ended = std::panic::catch_unwind(run);
    let why = match ended {
        Ok(Ok(node::End::PowerOff)) => power(RebootCommand::PowerOff),
        Ok(Ok(node::End::Restart)) => power(RebootCommand::Restart),
        Ok(Err(failure)) => failure.to_string(),
        Err(_) => "casemate-init has crashed: please report the message above".to_owned(),
    };
    console::say(&format!(
        "casemate cannot continue: {why}. This machine restarts in {} seconds.",
        BEFORE_RESTART.as_secs()
    ));
    std::thread::sleep(BEFORE_RESTART);
    power(RebootCommand::Restart);
    ExitCode::FAILURE
}

/// Ends or restarts the machine; returns why, if that fails.
fn power(command: RebootCommand) -> String {
    rustix::fs::sync();
    match reboot(command) {
        Ok(()) => "the kernel did not carry out the restart or power-off".to_owned(),
        Err(error) => format!("the kernel did not carry out the restart or power-off: {error}"),
    }
}

/// An error after which init cannot continue.
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
    #[error("{0} is not a description of an image")]
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
            // An image on trial that does not open the key is bad; without a trial the fault may
            // have passed.
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

/// Shows a state in which the machine cannot serve, and waits for a while; then the machine
/// restarts.
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
