//! A node that is a machine of its own: the image that is made of our programs, booted by QEMU
//! under software emulation.

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

/// How the machine reaches the one that it runs on: QEMU's user network.
pub const HOST: &str = "10.0.2.2";
/// Of the image, where it does not matter.
const USUAL_PROFILE: &str = "virtual-machine";
const VERSION: &str = "0.0.1";
/// Memory, MiB.
const MEMORY_MIB: u32 = 768;
/// Of the state partition.
const STATE_BYTES: u64 = 256 << 20;
/// Until the console says something that is awaited: the machine is emulated, and this one is busy.
pub const CONSOLE_TIMEOUT: Duration = Duration::from_secs(240);

/// The image, made once for all tests of a program.
pub fn image() -> Result<&'static Image> {
    static IMAGE: OnceLock<Result<Image, String>> = OnceLock::new();
    let made = IMAGE.get_or_init(|| {
        let made = programs_folder().and_then(|folder| make(USUAL_PROFILE, VERSION, &folder));
        made.map_err(|error| format!("{error:#}"))
    });
    made.as_ref().map_err(|error| anyhow!(error.clone()))
}

/// The plan of an image of the programs beside this one, and where they are.
pub fn plan() -> Result<(Plan, Programs, Apt)> {
    plan_of(USUAL_PROFILE, VERSION, &programs_folder()?)
}

/// The image for machines of metal, of the same programs.
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

/// The seed of a node whose vault reaches an upstream on the machine that it runs on.
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

/// Writes a disk with a seed on it, to be attached by [`seed_disk_arguments`].
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

/// QEMU's arguments for such a disk.
pub fn seed_disk_arguments(path: &Path) -> Vec<String> {
    let drive = format!("if=none,id=seed,format=raw,file={}", path.display());
    let device = "virtio-blk-pci,drive=seed";
    ["-drive", &drive, "-device", device]
        .map(ToOwned::to_owned)
        .to_vec()
}

/// Until an emulated TPM listens.
const TPM_TIMEOUT: Duration = Duration::from_secs(20);

/// What a machine is given.
#[derive(Debug, Clone, Default)]
pub struct Hardware {
    /// Files of the seed, over fw_cfg.
    pub seed: Vec<(String, Vec<u8>)>,
    /// Memory, MiB, where it is not the usual.
    pub memory_mib: Option<u32>,
    /// Without a network card.
    pub no_network: bool,
    /// Of the state partition, bytes, where it is not the usual.
    pub state_bytes: Option<u64>,
    /// With disk and network card of a kind that machines of metal have, and nothing of virtio.
    pub is_metal: bool,
    /// It may start again by itself; else it ends then.
    pub restarts: bool,
    /// With a TPM, whose state is in this folder.
    pub tpm: Option<PathBuf>,
    /// More of QEMU's arguments.
    pub more: Vec<String>,
}

/// Firmware for a machine that boots from its disk, in Debian's package `ovmf`: code that refuses
/// what is not signed, and variables with a key whose private half everybody has.
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd";
/// Without a key, firmware starts everything.
const NO_KEYS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const TEST_KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
const TEST_CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";
const TEST_KEY_PASSPHRASE: &str = "pass:snakeoil";
/// The folder that a machine's network serves, and the image in it.
const NETWORK: &str = "network";
const NETWORK_IMAGE: &str = "casemate.efi";

/// The image, signed so that the test firmware starts it.
pub fn signed_image(folder: &Path) -> Result<Image> {
    signed(folder, make(USUAL_PROFILE, VERSION, &programs_folder()?)?)
}

/// An image of this version, signed, in which some programs are others: the name of one, and whose
/// file stands in its place.
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

/// Those of ours that are in an image.
const PROGRAMS: &[&str] = &[
    "casemate-init",
    "casemate-launch",
    "casemate-node",
    "casemate-vault",
    "casemate-gateway",
    "casemate-worker",
];

/// What a machine starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// QEMU loads the kernel.
    Emulator,
    /// Firmware finds an image on the disk.
    Disk,
    /// Firmware asks the network for one (PXE).
    Network,
}

/// See the module. Dropping it is a power cut.
#[derive(Debug)]
pub struct Machine {
    folder: PathBuf,
    running: Option<Running>,
    tpm: Option<Running>,
    starts: u32,
    from: From,
    /// Where callers reach its gateway.
    pub gateway: SocketAddr,
}

/// Starts a TPM; QEMU's arguments for it. What it keeps it writes at once, so ending it is a power
/// cut as well.
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

    /// The same with another image.
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

    /// Boots a machine through its firmware, which starts only what is signed, from a disk with
    /// this image on it.
    pub fn start_from_disk(folder: &Path, image: &Image, hardware: &Hardware) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = uki_path(&image.version);
        let identity = folder.display().to_string();
        let files = boot_files(image, &path);
        write_disk(&folder.join("disk"), &files, STATE_BYTES, &identity)?;
        std::fs::copy(VARIABLES, folder.join("variables")).context("is ovmf installed?")?;
        Self::with_disk(folder, From::Disk, hardware)
    }

    /// The same with an empty disk: the image comes over the network.
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
        // Free now; whoever takes it in the meantime is noticed by QEMU.
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

    /// Changes what the firmware starts from.
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

    /// Turns Secure Boot off or on in the firmware's settings, as somebody does who sits at the
    /// machine.
    pub fn set_secure_boot(&mut self, on: bool) -> Result<()> {
        self.cut_power()?;
        let from = if on { VARIABLES } else { NO_KEYS };
        std::fs::copy(from, self.folder.join("variables"))?;
        Ok(())
    }

    /// Boots it with the disk that it has.
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
        // QEMU's emulation of a second processor does not come through a warm start; and of the
        // machines that firmware starts, whose system management mode wants all processors at once,
        // one did not come up.
        let is_single = hardware.restarts || self.has_firmware();
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-smp", if is_single { "1" } else { "2" }]);
        let memory = hardware.memory_mib.unwrap_or(MEMORY_MIB);
        command.arg("-m").arg(memory.to_string());
    }

    /// What starts: firmware that finds the image, or the kernel itself.
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

    /// The disk, and the network card.
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

    /// Everything that this boot has said.
    pub fn said(&self) -> String {
        let bytes = std::fs::read(self.console()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The last lines of that: what a failed test has room for.
    pub fn said_last(&self) -> String {
        const LINES: usize = 30;
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// Waits until the console says something.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        self.wait_for_within(text, CONSOLE_TIMEOUT)
    }

    /// Waits for something that takes several starts of the machine.
    pub fn wait_for_within(&mut self, text: &str, time: Duration) -> Result<()> {
        let running = self.running.as_mut().context("the machine runs")?;
        running.wait_for_log(text, time)
    }

    /// Ends it as a power cut does.
    pub fn cut_power(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.kill()?;
        }
        if let Some(mut tpm) = self.tpm.take() {
            tpm.kill()?;
        }
        Ok(())
    }

    /// Its process id here.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }
}
