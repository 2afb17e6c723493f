//! The only room with an OS clock, spawned tasks, signals and reloads.
pub mod clock;
pub mod guard;
pub mod head_version;
pub mod history;
pub mod lock;
mod part;
mod recent;
pub mod reload;
pub mod secret;
pub mod shutdown;
pub mod tasks;
pub mod watch;
