//! The instrument finds what it is for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Runs a target that must fail, and returns what it said.
fn found(fuzz: Fuzz<'_>, decode: impl Fn(&[u8]) -> Verdict) -> String {
    let failed = catch_unwind(AssertUnwindSafe(|| fuzz.run(decode)));
    let panic = failed.expect_err("the target's fault was not found");
    panic.downcast_ref::<String>().cloned().expect("a finding is a text")
}

#[test]
fn a_panic_is_found_and_made_small() {
    let fuzz = Fuzz::new("self_panic", [b"length 5 and then some more".to_vec()]);
    let said = found(fuzz, |input| {
        assert!(!input.contains(&0xee), "a byte that must not be");
        Verdict::Accepted
    });
    assert!(said.contains("a byte that must not be"), "{said}");
    assert!(said.contains("an input of 1 bytes: ee"), "{said}");
}

#[test]
fn a_length_that_is_believed_is_found() {
    let fuzz = Fuzz::new("self_memory", [[0, 0, 0, 1, 7].to_vec()]);
    let said = found(fuzz, |input| {
        let Some((len, rest)) = input.split_first_chunk() else { return Verdict::Refused };
        // The fault: the room is made before the bytes are there.
        let mut payload = Vec::<u8>::with_capacity(u32::from_be_bytes(*len) as usize);
        payload.extend(rest);
        Verdict::Accepted
    });
    assert!(said.contains("it allocated"), "{said}");
}

#[test]
fn what_stands_behind_a_checksum_is_reached_by_repair() {
    let sum: fn(&[u8]) -> u8 =
        |payload| payload.iter().fold(0, |sum, byte| sum.wrapping_mul(31) ^ byte);
    let repair = move |input: &mut Vec<u8>| {
        if let Some((first, rest)) = input.split_first_mut() {
            *first = sum(rest);
        }
    };
    let fuzz = Fuzz::new(
        "self_repair",
        [vec![sum(b"payload"); 1].into_iter().chain(*b"payload").collect::<Vec<u8>>()],
    );
    let said = found(fuzz.repair(&repair), |input| {
        let Some((first, rest)) = input.split_first() else { return Verdict::Refused };
        if sum(rest) != *first {
            return Verdict::Refused;
        }
        assert_ne!(rest.first(), Some(&0xff), "behind the checksum");
        Verdict::Accepted
    });
    assert!(said.contains("behind the checksum"), "{said}");
}

#[test]
fn a_decoder_that_refuses_what_is_valid_is_found() {
    let said = found(Fuzz::new("self_refuse", [b"valid"]), |_| Verdict::Refused);
    assert!(said.contains("a valid input is refused"), "{said}");
}
