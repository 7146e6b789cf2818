//! wip
pub mod cursor;
pub mod decode;
pub mod freshness;
