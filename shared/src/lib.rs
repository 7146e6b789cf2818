//! What the gateway and the load tester both need: the wire, its names and its rules.
//!
//! Everything here is a value or a pure function. There is no tokio, no Redis, no clock and no environment in
//! this crate, so each rule can be tested by rows of data and reused by a client as well as by a server.
//!
//! | module | what it knows |
//! |---|---|
//! | [`field`] | the fields that may be public, as types that refuse what does not fit |
//! | [`message`] | what a client reads and writes, byte for byte |
//! | [`event`] | what producers send, and the allow-list that turns it into public messages |
//! | [`close`] | the one table of close codes |
//! | [`ids`] | newtypes that parse or refuse |
//! | [`time`] | whole-second RFC 3339 timestamps |
//! | [`keys`] | the only place where a Redis name is built |
//! | [`backoff`] | how long to wait before trying again |

pub mod backoff;
pub mod close;
pub mod event;
pub mod field;
pub mod ids;
pub mod keys;
pub mod message;
pub mod time;
