//! The power button, which a hypervisor's "shut down" presses too, read from the kernel's input
//! events (`linux/input.h`).

use std::fs::{self, File};
use std::io::Read as _;

use tokio::sync::mpsc;

const DEVICES: &str = "/dev/input";
/// An event: a time of 16 bytes, then type, code and value.
const EVENT_BYTES: usize = 24;
const KEY: u16 = 1;
const POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Sends a message for each press. A machine without a button never sends any.
pub(crate) fn listen() -> mpsc::Receiver<()> {
    let (presses, pressed) = mpsc::channel(1);
    let devices = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    for device in devices.filter(|entry| entry.file_name().to_string_lossy().starts_with("event")) {
        let presses = presses.clone();
        if let Ok(mut device) = File::open(device.path()) {
            // The thread blocks in the kernel as long as the machine runs.
            std::thread::spawn(move || {
                let mut event = [0; EVENT_BYTES];
                while device.read_exact(&mut event).is_ok() {
                    if is_power(&event) && presses.blocking_send(()).is_err() {
                        return;
                    }
                }
            });
        }
    }
    pressed
}

fn is_power(event: &[u8; EVENT_BYTES]) -> bool {
    let [.., a, b, c, d, e, f, g, h] = *event;
    u16::from_ne_bytes([a, b]) == KEY
        && u16::from_ne_bytes([c, d]) == POWER
        && i32::from_ne_bytes([e, f, g, h]) == PRESSED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_press_of_the_power_button_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut event = [0; EVENT_BYTES];
            event[16..18].copy_from_slice(&kind.to_ne_bytes());
            event[18..20].copy_from_slice(&code.to_ne_bytes());
            event[20..].copy_from_slice(&value.to_ne_bytes());
            event
        };
        assert!(is_power(&event(1, 116, 1)));
        for other in [event(1, 116, 0), event(1, 30, 1), event(0, 116, 1)] {
            assert!(!is_power(&other));
        }
    }
}
