//! What a million remembered clients take in memory.
//!
//! A program of its own: it counts every byte that is allocated.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use rayguard::core::admission::history::{CLIENTS_MAX, History};
use rayguard::core::request::client_id::ClientId;
use rayguard::core::time::Time;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A digest as good as a keyed one.
fn spread(n: u64) -> u64 {
    let mixed = (n ^ n >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ mixed >> 32
}

fn see(history: &History, clients: std::ops::Range<u64>) {
    for n in clients {
        history.earn(ClientId { address: spread(n), credential: None }, 0.01, Time::ZERO);
    }
}

#[test]
fn a_million_clients_are_remembered_in_128_bytes_each_and_more_take_no_more() {
    let region = Region::new(ALLOCATOR);
    let history = History::default();
    let held = || {
        let change = region.change();
        i64::try_from(change.bytes_allocated).unwrap() - i64::try_from(change.bytes_deallocated).unwrap()
            + i64::try_from(change.bytes_reallocated).unwrap()
    };
    see(&history, 0..1_000_000);
    let (clients, bytes) = (history.len(), held());
    println!("{clients} clients, {} bytes each", bytes as f64 / clients as f64);
    assert_eq!(clients, 1_000_000);
    assert!(bytes <= 128 * 1_000_000, "{bytes}");
    see(&history, 1_000_000..2_400_000);
    assert!(history.len() <= CLIENTS_MAX, "{}", history.len());
    assert!(held() <= 128 * i64::try_from(CLIENTS_MAX).unwrap(), "{}", held());
}
