//! The operator's listener: health, metrics, the JSON API and the page.
pub mod api;
pub mod page;
