//! From the operator's file to a policy that cannot be wrong.
pub mod checked;
pub mod defaults;
pub mod document;
pub mod problem;
pub mod quantity;
pub mod raw;
