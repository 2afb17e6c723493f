//! The crates that are fuzzed, under the name the tests' rig knows them by: the whole program would take twice
//! as long to build.

pub use rayguard_config as config;
pub use rayguard_core as core;
pub use rayguard_proxy as proxy;
