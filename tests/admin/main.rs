//! The operator's side, from outside: a whole gate in front of an emulated head, asked over
//! HTTP as people, scrapers and browsers ask it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may fail the test, and say why they skip one"
)]

mod api;
mod cli;
mod gate;
mod metrics;
mod notify;
mod page;
mod recording;
