//! The command line, in the manner of `ray`.
pub mod check;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod limits;
pub mod load;
pub mod log;
pub mod record;
pub mod replay;
pub mod run;
pub mod simulate;
pub mod status;
pub mod tune;
