use std::num::NonZeroU32;

use proptest::prelude::*;

use super::packet::{NOTE, packet};
use super::*;

fn commands() -> impl Strategy<Value = Command> {
    let program = prop::sample::select(vec![Program::Vault, Program::Gateway, Program::Worker]);
    prop_oneof![
        (any::<u64>(), program, any::<u32>(), any::<u32>()).prop_map(
            |(id, program, memory_mib, pids)| Command::Start {
                id,
                program,
                memory_mib,
                pids
            }
        ),
        prop::collection::btree_set(any::<u64>(), 1..9).prop_map(|ids| Command::Kill { ids }),
        any::<u64>().prop_map(|id| Command::Hold { id }),
        any::<u64>().prop_map(|id| Command::Release { id }),
        (any::<u64>(), any::<[u8; NOTE_BYTES]>()).prop_map(|(id, note)| Command::Note { id, note }),
        (any::<u64>(), any::<[NonZeroU32; 3]>()).prop_map(
            |(id, [memory_mib, tenant, tenant_memory_mib])| Command::Assign {
                id,
                memory_mib,
                tenant,
                tenant_memory_mib
            }
        ),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    let refusal = prop_oneof![
        Just(Refusal::Busy),
        Just(Refusal::Duplicate),
        Just(Refusal::NotAControlSocket),
        Just(Refusal::Unlimited),
        any::<i32>().prop_map(Refusal::Failed),
    ];
    let end = prop_oneof![
        any::<i32>().prop_map(End::Exit),
        any::<i32>().prop_map(End::Signal),
        Just(End::OutOfMemory)
    ];
    prop_oneof![
        any::<u64>().prop_map(|id| Event::Held { id }),
        (any::<u64>(), any::<u32>()).prop_map(|(id, pid)| Event::Started { id, pid }),
        (any::<u64>(), any::<[u32; 3]>(), any::<[u8; NOTE_BYTES]>()).prop_map(
            |(id, [pid, memory_mib, tenant], note)| Event::Adopted {
                id,
                program: Program::Worker,
                pid,
                memory_mib,
                tenant: NonZeroU32::new(tenant),
                note,
            }
        ),
        (any::<u64>(), refusal).prop_map(|(id, refusal)| Event::Refused { id, refusal }),
        (any::<u64>(), end).prop_map(|(id, end)| Event::Exited { id, end }),
    ]
}

#[test]
fn a_kill_of_all_children_is_one_packet_and_of_one_more_is_none() {
    let kill = |count: usize| Command::Kill {
        ids: (0..count as u64).collect(),
    };
    let all = kill(KILL_MAX);
    assert_eq!(all.encode().len(), COMMAND_BYTES_MAX);
    assert_eq!(Command::decode(&all.encode()), Ok(all));
    let more = kill(KILL_MAX + 1).encode();
    assert_eq!(Command::decode(&more), Err(Malformed));
}

proptest! {
    #[test]
    fn commands_round_trip(command in commands()) {
        prop_assert_eq!(Event::decode(&command.encode()), Err(Malformed));
        prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
    }

    #[test]
    fn events_round_trip(event in events()) {
        prop_assert_eq!(Event::decode(&event.encode()), Ok(event));
        prop_assert_eq!(Command::decode(&event.encode()), Err(Malformed));
    }

    #[test]
    fn truncated_and_lengthened_packets_are_refused(
        command in commands(),
        length in 0..PACKET_BYTES,
        more in 1..100_usize,
    ) {
        let bytes = command.encode();
        prop_assert_eq!(Command::decode(&bytes[..length]), Err(Malformed));
        prop_assert_eq!(Command::decode(&bytes[..bytes.len() - 1]), Err(Malformed));
        let longer: Vec<u8> = bytes.into_iter().chain(std::iter::repeat_n(0, more)).collect();
        prop_assert_eq!(Command::decode(&longer), Err(Malformed));
    }

    #[test]
    fn whatever_is_read_is_exactly_what_would_be_written(
        bytes in prop::collection::vec(any::<u8>(), PACKET_BYTES),
    ) {
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(command.encode().to_vec(), bytes.clone());
        }
    }

    #[test]
    fn a_kill_names_each_child_once_in_order_and_at_least_one(
        ids in prop::collection::vec(any::<u64>(), 0..5),
    ) {
        let head = packet(2, 0, ids.len() as u64, [0; 3]);
        let listed = ids.iter().flat_map(|id| id.to_le_bytes());
        let bytes: Vec<u8> = head.into_iter().chain(listed).collect();
        let is_valid = !ids.is_empty() && ids.is_sorted_by(|one, next| one < next);
        prop_assert_eq!(Command::decode(&bytes).is_ok(), is_valid);
    }

    #[test]
    fn a_limit_of_nothing_is_none(id in any::<u64>()) {
        for numbers in [[0, 1, 1], [1, 0, 1], [1, 1, 0]] {
            prop_assert_eq!(Command::decode(&packet(6, 0, id, numbers)), Err(Malformed));
        }
    }

    #[test]
    fn a_changed_byte_is_refused_or_means_something_else(
        command in commands(),
        at in 0..PACKET_BYTES,
        flip in 1..=255_u8,
    ) {
        let mut bytes = command.encode();
        bytes[at] ^= flip;
        let is_note = matches!(command, Command::Note { .. }) && NOTE.contains(&at);
        prop_assert_ne!(Command::decode(&bytes), Ok(command));
        if at < 4 || at == 6 || at == 7 || (at >= 28 && !is_note) {
            prop_assert_eq!(Command::decode(&bytes), Err(Malformed));
        }
    }
}
