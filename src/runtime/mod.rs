//! The application: what is started, watched, reloaded and shut down.
pub mod app;
pub mod head_version;
pub mod history;
pub mod lock;
mod quota;
pub mod ray_identity;
mod recent;
pub mod reload;
pub mod secret;
pub mod shutdown;
pub mod watch;
