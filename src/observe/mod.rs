//! Looking at Ray, and writing down what was seen and done.
pub mod discover;
pub mod fetch;
pub mod ledger;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod probe;
pub mod promql;
pub mod recorder;
pub mod scrape;
