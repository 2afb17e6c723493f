//! Looking at Ray, and writing down what was seen and done.
pub mod adjustment_log;
pub mod discover;
pub mod fetch;
pub mod job_state;
pub mod local_head;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod probe;
pub mod promql;
pub mod scrape;
pub mod tally;
pub mod trace_writer;
