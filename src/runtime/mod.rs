//! The application: what is started, watched, reloaded and shut down.
pub mod app;
pub mod head_version;
pub mod history;
pub mod lock;
mod quota;
mod recent;
pub mod reload;
pub mod secret;
pub mod seen_ray;
pub mod shutdown;
pub mod watch;
