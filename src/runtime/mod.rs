//! The only room with an OS clock, spawned tasks, signals and reloads.
pub mod app;
pub mod clock;
pub mod head_version;
pub mod history;
pub mod lock;
mod quota;
mod recent;
pub mod reload;
pub mod secret;
pub mod shutdown;
pub mod tasks;
pub mod watch;
