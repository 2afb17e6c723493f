//! From exposition text to readings: what Ray says of itself, and how far to trust it.
pub mod catalogue;
pub(crate) mod derive;
pub mod exposition;
pub mod freshness;
mod line;
pub mod reading;
pub mod selector;
pub mod series;
