//! The laws that move limits, one file each, and the guardrails that keep every law honest.
pub mod aimd;
pub mod backlog;
pub mod budget;
pub mod dead_time;
pub mod futile;
pub mod gradient;
pub mod guardrails;
pub mod job_starts;
pub mod knee;
pub mod law;
pub mod oscillation;
pub mod pid;
pub mod regulator;
pub mod stability;
pub mod trial;
pub mod wasted;

#[cfg(test)]
mod closed_loop_tests;
