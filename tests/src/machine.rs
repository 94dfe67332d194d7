//! A node that is a virtual machine: an image of our programs, booted by QEMU under software
//! emulation.

use std::fs::File;
use std::io::{Cursor, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use casemate_images::{
    Apt, BOOT_BYTES, BOOT_START, Compression, Image, Plan, Profile, Programs, SecureBootKey,
    boot_files, build, uki_path, write_disk,
};

use crate::fleet::UPSTREAM_HOST;
use crate::programs::{Running, programs_folder};

/// The host's address as the virtual machine sees it: QEMU's user network.
pub const HOST: &str = "10.0.2.2";
/// The image's profile, for tests that do not depend on it.
const USUAL_PROFILE: &str = "virtual-machine";
const VERSION: &str = "0.0.1";
/// Default memory, MiB.
const MEMORY_MIB: u32 = 768;
/// Default size of the state partition.
const STATE_BYTES: u64 = 256 << 20;
/// Longest wait for a text on the console: the machine is emulated, and the host is busy.
pub const CONSOLE_TIMEOUT: Duration = Duration::from_secs(240);

/// The image, built once for all tests of a program.
pub fn image() -> Result<&'static Image> {
    static IMAGE: OnceLock<Result<Image, String>> = OnceLock::new();
    let made = IMAGE.get_or_init(|| {
        let made = programs_folder().and_then(|folder| make(USUAL_PROFILE, VERSION, &folder));
        made.map_err(|error| format!("{error:#}"))
    });
    made.as_ref().map_err(|error| anyhow!(error.clone()))
}

/// The plan of an image of the programs beside this program, with the sources of its files.
pub fn plan() -> Result<(Plan, Programs, Apt)> {
    plan_of(USUAL_PROFILE, VERSION, &programs_folder()?)
}

/// The image for physical machines, with the same programs.
pub fn bare_metal_image() -> Result<Image> {
    make("bare-metal", VERSION, &programs_folder()?)
}

fn plan_of(profile: &str, version: &str, programs: &Path) -> Result<(Plan, Programs, Apt)> {
    let programs = Programs::in_folder(programs);
    let mut packages = Apt::new(programs_folder()?.join("debian"));
    let profile = Profile::named(profile)?;
    let plan = Plan::make(&profile, version, 1_700_000_000, &programs, &mut packages)?;
    Ok((plan, programs, packages))
}

fn make(profile: &str, version: &str, programs: &Path) -> Result<Image> {
    let (plan, programs, mut packages) = plan_of(profile, version, programs)?;
    Ok(build(&plan, &programs, &mut packages, Compression::Fast)?)
}

/// The seed of a node whose vault reaches an upstream on the host.
pub fn seed(token: &str) -> Vec<(String, Vec<u8>)> {
    let vault = format!(
        "join_token_file = \"join-token\"\nprivate_addresses = [\"{HOST}/32\"]\ntrust_anchors = []\n\
         [resolver.hosts]\n\"{UPSTREAM_HOST}\" = [\"{HOST}\"]\n"
    );
    let node = "[gateway]\nlisten = [\"0.0.0.0:80\"]\n[workers]\nspares = 1\nmax = 4\n";
    vec![
        ("join-token".to_owned(), token.as_bytes().to_vec()),
        ("node.toml".to_owned(), node.as_bytes().to_vec()),
        ("vault.toml".to_owned(), vault.into_bytes()),
    ]
}

/// Writes a disk image with a seed, which [`seed_disk_arguments`] attaches.
pub fn write_seed_disk(path: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    let disk = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path)?;
    disk.set_len(4 << 20)?;
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CASEMATE   ");
    fatfs::format_volume(&disk, options)?;
    let fat = fatfs::FileSystem::new(&disk, fatfs::FsOptions::new())?;
    for (name, bytes) in files {
        fat.root_dir().create_file(name)?.write_all(bytes)?;
    }
    Ok(fat.unmount()?)
}

/// QEMU's arguments that attach a seed disk.
pub fn seed_disk_arguments(path: &Path) -> Vec<String> {
    let drive = format!("if=none,id=seed,format=raw,file={}", path.display());
    let device = "virtio-blk-pci,drive=seed";
    ["-drive", &drive, "-device", device]
        .map(ToOwned::to_owned)
        .to_vec()
}

/// Time within which an emulated TPM must listen.
const TPM_TIMEOUT: Duration = Duration::from_secs(20);

/// The hardware of a virtual machine, and its seed.
#[derive(Debug, Clone, Default)]
pub struct Hardware {
    /// Files of the seed, passed over fw_cfg.
    pub seed: Vec<(String, Vec<u8>)>,
    /// Memory in MiB, if not `MEMORY_MIB`.
    pub memory_mib: Option<u32>,
    /// The machine has no network card.
    pub no_network: bool,
    /// Size of the state partition in bytes, if not `STATE_BYTES`.
    pub state_bytes: Option<u64>,
    /// Disk and network card are of kinds that physical machines have, without virtio.
    pub is_metal: bool,
    /// The machine may restart by itself; otherwise QEMU ends instead.
    pub restarts: bool,
    /// The machine has a TPM, whose state is in this folder.
    pub tpm: Option<PathBuf>,
    /// Further arguments for QEMU.
    pub more: Vec<String>,
}

/// Firmware for a machine that boots from its disk, in Debian's package `ovmf`: code that refuses
/// unsigned programs, and variables with a key whose private half is public.
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd";
/// Variables without a key: the firmware starts every program.
const NO_KEYS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const TEST_KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
const TEST_CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";
const TEST_KEY_PASSPHRASE: &str = "pass:snakeoil";
/// The folder that the virtual network serves over TFTP, and the image in it.
const NETWORK: &str = "network";
const NETWORK_IMAGE: &str = "casemate.efi";

/// The image, signed with the key that the test firmware trusts.
pub fn signed_image(folder: &Path) -> Result<Image> {
    signed(folder, make(USUAL_PROFILE, VERSION, &programs_folder()?)?)
}

/// A signed image of this version with changed programs: each pair names a program, and the program
/// whose file takes its place.
pub fn changed_image(folder: &Path, version: &str, changes: &[(&str, &str)]) -> Result<Image> {
    let from = programs_folder()?;
    let programs = folder.join(format!("programs-{version}"));
    std::fs::create_dir_all(&programs)?;
    for name in PROGRAMS {
        let changed = changes.iter().find(|(changed, _)| changed == name);
        let source = from.join(changed.map_or(*name, |(_, by)| by));
        std::os::unix::fs::symlink(source, programs.join(name))?;
    }
    signed(folder, make(USUAL_PROFILE, version, &programs)?)
}

fn signed(folder: &Path, mut image: Image) -> Result<Image> {
    let key = folder.join("secure-boot.key");
    let opened = Command::new("openssl")
        .args([
            "rsa",
            "-in",
            TEST_KEY,
            "-passin",
            TEST_KEY_PASSPHRASE,
            "-out",
        ])
        .arg(&key)
        .output()
        .context("openssl")?;
    if !opened.status.success() {
        bail!(
            "openssl: {}; is ovmf installed?",
            String::from_utf8_lossy(&opened.stderr)
        );
    }
    image.sign(&SecureBootKey {
        key,
        certificate: TEST_CERTIFICATE.into(),
    })?;
    Ok(image)
}

/// Our programs that are in an image.
const PROGRAMS: &[&str] = &[
    "casemate-init",
    "casemate-launch",
    "casemate-node",
    "casemate-vault",
    "casemate-gateway",
    "casemate-worker",
];

/// What starts a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// QEMU loads the kernel directly.
    Emulator,
    /// The firmware finds an image on the disk.
    Disk,
    /// The firmware loads an image over the network (PXE).
    Network,
}

/// A virtual machine. Dropping it is a power cut.
#[derive(Debug)]
pub struct Machine {
    folder: PathBuf,
    running: Option<Running>,
    tpm: Option<Running>,
    starts: u32,
    from: From,
    /// Where callers reach the machine's gateway.
    pub gateway: SocketAddr,
}

/// Starts a TPM; returns QEMU's arguments for it. The TPM writes its state at once, so that ending
/// it is a power cut as well.
fn start_tpm(folder: &Path) -> Result<(Running, [String; 6])> {
    std::fs::create_dir_all(folder)?;
    let socket = folder.join("control");
    let socket = socket.display();
    let mut command = Command::new("swtpm");
    command.args(["socket", "--tpm2", "--tpmstate"]);
    command.arg(format!("dir={}", folder.display()));
    command.args(["--ctrl", &format!("type=unixio,path={socket}")]);
    let running = Running::start("swtpm", command, &folder.join("log"))
        .context("is swtpm installed? `scripts/setup test` does it")?;
    let until = Instant::now() + TPM_TIMEOUT;
    while !folder.join("control").exists() {
        if Instant::now() > until {
            bail!("swtpm has not started: {}", running.log());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let arguments = [
        "-chardev".to_owned(),
        format!("socket,id=tpm,path={socket}"),
        "-tpmdev".to_owned(),
        "emulator,id=tpm,chardev=tpm".to_owned(),
        "-device".to_owned(),
        "tpm-tis,tpmdev=tpm".to_owned(),
    ];
    Ok((running, arguments))
}

impl Machine {
    /// Boots a machine with an empty disk.
    pub fn start(folder: &Path, hardware: &Hardware) -> Result<Self> {
        Self::start_image(folder, image()?, hardware)
    }

    /// Like [`Self::start`], with another image.
    pub fn start_image(folder: &Path, image: &Image, hardware: &Hardware) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("kernel"), &image.kernel)?;
        std::fs::write(folder.join("initramfs"), &image.initramfs)?;
        std::fs::write(folder.join("command-line"), &image.command_line)?;
        let identity = folder.display().to_string();
        let bytes = hardware.state_bytes.unwrap_or(STATE_BYTES);
        write_disk(&folder.join("disk"), &[], bytes, &identity)?;
        Self::with_disk(folder, From::Emulator, hardware)
    }

    /// Boots a machine from a disk with this image, through firmware that starts only signed
    /// programs.
    pub fn start_from_disk(folder: &Path, image: &Image, hardware: &Hardware) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = uki_path(&image.version);
        let identity = folder.display().to_string();
        let files = boot_files(image, &path);
        write_disk(&folder.join("disk"), &files, STATE_BYTES, &identity)?;
        std::fs::copy(VARIABLES, folder.join("variables")).context("is ovmf installed?")?;
        Self::with_disk(folder, From::Disk, hardware)
    }

    /// Like [`Self::start_from_disk`], with an empty disk: the firmware loads the image over the
    /// network.
    pub fn start_from_network(folder: &Path, image: &Image, hardware: &Hardware) -> Result<Self> {
        let served = folder.join(NETWORK);
        std::fs::create_dir_all(&served)?;
        std::fs::write(served.join(NETWORK_IMAGE), &image.uki)?;
        let identity = folder.display().to_string();
        write_disk(&folder.join("disk"), &[], STATE_BYTES, &identity)?;
        std::fs::copy(VARIABLES, folder.join("variables")).context("is ovmf installed?")?;
        Self::with_disk(folder, From::Network, hardware)
    }

    fn with_disk(folder: &Path, from: From, hardware: &Hardware) -> Result<Self> {
        // The port is free now; if another program takes it in the meantime, QEMU fails.
        let gateway = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut machine = Self {
            folder: folder.to_owned(),
            running: None,
            tpm: None,
            starts: 0,
            from,
            gateway,
        };
        machine.boot(hardware)?;
        Ok(machine)
    }

    /// Edits the partition from which the firmware starts.
    pub fn edit_boot_partition(
        &mut self,
        change: impl FnOnce(&fatfs::Dir<'_, &mut Cursor<Vec<u8>>>) -> Result<()>,
    ) -> Result<()> {
        self.cut_power()?;
        let disk = File::options()
            .read(true)
            .write(true)
            .open(self.folder.join("disk"))?;
        let mut bytes = vec![0; usize::try_from(BOOT_BYTES)?];
        disk.read_exact_at(&mut bytes, BOOT_START)?;
        let mut partition = Cursor::new(bytes);
        let fat = fatfs::FileSystem::new(&mut partition, fatfs::FsOptions::new())?;
        change(&fat.root_dir())?;
        fat.unmount()?;
        Ok(disk.write_all_at(partition.get_ref(), BOOT_START)?)
    }

    /// Turns Secure Boot on or off in the firmware's settings, as a person at the machine's
    /// keyboard can.
    pub fn set_secure_boot(&mut self, on: bool) -> Result<()> {
        self.cut_power()?;
        let from = if on { VARIABLES } else { NO_KEYS };
        std::fs::copy(from, self.folder.join("variables"))?;
        Ok(())
    }

    /// Boots the machine with its present disk.
    pub fn boot(&mut self, hardware: &Hardware) -> Result<()> {
        self.cut_power()?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-serial", "stdio"]);
        self.add_processors(&mut command, hardware);
        self.add_boot(&mut command)?;
        self.add_devices(&mut command, hardware);
        self.add_seed(&mut command, &hardware.seed)?;
        if let Some(tpm) = &hardware.tpm {
            let (running, arguments) = start_tpm(tpm)?;
            self.tpm = Some(running);
            command.args(arguments);
        }
        command.args(&hardware.more);
        self.starts += 1;
        File::create(self.console())?;
        let running = Running::start("qemu-system-x86_64", command, &self.console());
        self.running =
            Some(running.context("is qemu-system-x86 installed? `scripts/setup test` does it")?);
        Ok(())
    }

    fn has_firmware(&self) -> bool {
        self.from != From::Emulator
    }

    fn add_processors(&self, command: &mut Command, hardware: &Hardware) {
        if !hardware.restarts {
            command.arg("-no-reboot");
        }
        let smm = if self.has_firmware() { "on" } else { "off" };
        command.arg("-machine").arg(format!("q35,smm={smm}"));
        // One processor only: under QEMU's emulation, a second processor does not survive a warm
        // restart, and a machine with firmware, whose system management mode needs all processors
        // at once, once failed to start.
        let is_single = hardware.restarts || self.has_firmware();
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-smp", if is_single { "1" } else { "2" }]);
        let memory = hardware.memory_mib.unwrap_or(MEMORY_MIB);
        command.arg("-m").arg(memory.to_string());
    }

    /// Adds the boot source: firmware that finds the image, or the kernel itself.
    fn add_boot(&self, command: &mut Command) -> Result<()> {
        if self.has_firmware() {
            let variables = self.folder.join("variables").display().to_string();
            command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
            command.arg("-drive").arg(format!(
                "if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}"
            ));
            command
                .arg("-drive")
                .arg(format!("if=pflash,unit=1,format=raw,file={variables}"));
        } else {
            command.arg("-kernel").arg(self.folder.join("kernel"));
            command.arg("-initrd").arg(self.folder.join("initramfs"));
            let command_line = std::fs::read_to_string(self.folder.join("command-line"))?;
            command.arg("-append").arg(command_line);
        }
        Ok(())
    }

    /// Adds the disk and the network card.
    fn add_devices(&self, command: &mut Command, hardware: &Hardware) {
        let (disk_device, card) = if hardware.is_metal {
            ("nvme,serial=1,drive=state", "e1000e,netdev=net")
        } else {
            command.args(["-device", "virtio-rng-pci"]);
            ("virtio-blk-pci,drive=state", "virtio-net-pci,netdev=net")
        };
        let disk = self.folder.join("disk").display().to_string();
        command
            .arg("-drive")
            .arg(format!("if=none,id=state,format=raw,file={disk}"));
        command.args(["-device", disk_device]);
        if hardware.no_network {
            return;
        }
        let mut net = format!("user,id=net,hostfwd=tcp:{}-:80", self.gateway);
        let mut card = card.to_owned();
        if self.from == From::Network {
            let served = self.folder.join(NETWORK);
            net += &format!(",tftp={},bootfile={NETWORK_IMAGE}", served.display());
            card += ",bootindex=0";
        }
        command.arg("-netdev").arg(net);
        command.arg("-device").arg(card);
    }

    fn add_seed(&self, command: &mut Command, seed: &[(String, Vec<u8>)]) -> Result<()> {
        for (name, bytes) in seed {
            let path = self.folder.join(format!("seed-{name}"));
            std::fs::write(&path, bytes)?;
            let path = path.display();
            command
                .arg("-fw_cfg")
                .arg(format!("name=opt/casemate/{name},file={path}"));
        }
        Ok(())
    }

    fn console(&self) -> PathBuf {
        self.folder.join(format!("console-{}", self.starts))
    }

    /// The console output of this boot.
    pub fn said(&self) -> String {
        let bytes = std::fs::read(self.console()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The last lines of the console output, for the message of a failed test.
    pub fn said_last(&self) -> String {
        const LINES: usize = 30;
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// Waits until the console shows this text.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        self.wait_for_within(text, CONSOLE_TIMEOUT)
    }

    /// Like [`Self::wait_for`], for texts that appear only after several starts of the machine.
    pub fn wait_for_within(&mut self, text: &str, time: Duration) -> Result<()> {
        let running = self
            .running
            .as_mut()
            .context("the machine is not running")?;
        running.wait_for_log(text, time)
    }

    /// Ends the machine like a power cut.
    pub fn cut_power(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.kill()?;
        }
        if let Some(mut tpm) = self.tpm.take() {
            tpm.kill()?;
        }
        Ok(())
    }

    /// The process id of QEMU.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }
}
