//! HTTP: what comes in before it is a WebSocket, and what never becomes one.

pub mod client_address;
pub mod proxy_protocol;
