//! The operator's side, from outside: a whole rayguard in front of an emulated head, asked over
//! HTTP as people, scrapers and browsers ask it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may fail the test, and say why they skip one"
)]

mod api;
mod cli;
mod described;
mod instance;
mod metrics;
mod notify;
mod page;
mod traffic_trace;
