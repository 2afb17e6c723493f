//! From bytes on the wire to a class and a party.
pub mod catalogue;
pub mod classify;
pub mod facts;
pub mod identify;
pub mod party;
pub mod path;
