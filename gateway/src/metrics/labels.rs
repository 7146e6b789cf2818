//! The labels of metrics and their values: closed sets, so that nobody outside can make a time series.
//!
//! Dashboards and alerts know these words; docs/OPERATIONS.md lists them, and a test compares the two (Inv. WIRE).

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Its values, each at its index.
    const VALUES: &'static [&'static str];
    /// Which value.
    fn index(self) -> usize;
}

/// Declares an enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$meta:meta])* $name:ident, $label:literal: $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)?) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($text),+];
            fn index(self) -> usize { self as usize }
        }
    };
}

label! {
    /// Which way a WebSocket message went.
    Direction, "direction":
    /// To a client.
    Sent = "sent",
    /// From a client.
    Received = "received",
}

label! {
    /// What became of a request to open a WebSocket.
    Handshake, "outcome":
    /// 101.
    Accepted = "accepted",
    /// 400: malformed request, key or parameter.
    Malformed = "malformed",
    /// 405: not GET.
    Method = "method",
    /// 426: no upgrade, or another WebSocket version.
    NoUpgrade = "no_upgrade",
    /// 403: origin.
    Origin = "origin",
    /// 429: the cap of sockets per address.
    AddressCap = "address_cap",
    /// 429: handshakes per second of one address.
    Rate = "rate",
    /// 503: the node carries all it may.
    Full = "full",
    /// 503: not ready yet.
    Starting = "starting",
    /// 503: the node is closed for draining.
    Draining = "draining",
    /// The connection ended before the upgrade was done.
    Abandoned = "abandoned",
}

label! {
    /// Why a TCP connection was ended before it made a request of use.
    Connect, "reason":
    /// accept(2) failed; EMFILE and its kin.
    AcceptFailed = "accept_failed",
    /// Too many connections that have not upgraded yet.
    TooMany = "too_many",
    /// Too many of those from one peer.
    TooManyOfPeer = "too_many_of_peer",
    /// The request did not arrive in time.
    Slow = "slow",
    /// Not HTTP, or a header block that is too large.
    Malformed = "malformed",
    /// A malformed PROXY protocol header, or one from a peer that is not trusted.
    ProxyHeader = "proxy_header",
    /// A panic in the connection's task.
    Panic = "panic",
}

label! {
    /// How a socket ended.
    Close, "reason":
    /// The client closed.
    Normal = "normal",
    /// 1002.
    Protocol = "protocol",
    /// 1003.
    Binary = "binary",
    /// 1007.
    InvalidPayload = "invalid_payload",
    /// 1008.
    MessageRate = "message_rate",
    /// 1009.
    TooBig = "too_big",
    /// 1011.
    Internal = "internal",
    /// 1012.
    Draining = "draining",
    /// 1013.
    Overloaded = "overloaded",
    /// 4408.
    PongTimeout = "pong_timeout",
    /// The connection broke, or was ended without a close frame.
    Io = "io",
}

label! {
    /// What a client's message was.
    Inbound, "kind":
    /// An answer to a ping.
    Pong = "pong",
    /// JSON of an unknown type: ignored.
    Unknown = "unknown",
    /// Over the message rate: dropped.
    OverRate = "over_rate",
    /// A control frame over the rate: dropped.
    ControlOverRate = "control_over_rate",
    /// A WebSocket ping or pong frame.
    Control = "control",
}

label! {
    /// What became of an event that a producer brought.
    Ingest, "outcome":
    /// It stands in the stream.
    Accepted = "accepted",
    /// A field does not fit.
    Invalid = "invalid",
    /// The backplane could not take it.
    Unavailable = "unavailable",
}

label! {
    /// Why a request to the ingest path was refused.
    IngestRefused, "reason":
    /// 401.
    Unauthorized = "unauthorized",
    /// 413.
    TooLarge = "too_large",
    /// 400.
    Malformed = "malformed",
    /// 503.
    Unavailable = "unavailable",
}

label! {
    /// What a client got that named the last message that it has.
    Resume, "outcome":
    /// All that it had missed.
    Complete = "complete",
    /// What is left of it: the past does not reach back far enough.
    Trimmed = "trimmed",
    /// A gap up to now: its last message is not of this stream.
    Unknown = "unknown",
    /// A gap up to now, while it caught up: it reads more slowly than the past goes by.
    TooSlow = "too_slow",
}

label! {
    /// What became of an entry read from the stream.
    Relayed, "outcome":
    /// Given to the broadcaster.
    Delivered = "delivered",
    /// Seen before, or a snapshot older than the last one.
    Duplicate = "duplicate",
    /// No such public type.
    UnknownType = "unknown_type",
    /// A field that does not fit, or is missing.
    Malformed = "malformed",
    /// A snapshot without slot and epoch: not written by a tick.
    Unfenced = "unfenced",
}

label! {
    /// What became of a message on the legacy channel.
    Legacy, "outcome":
    /// Moved into the stream.
    Moved = "moved",
    /// A field does not fit.
    Invalid = "invalid",
    /// The node had lost the lease: the new holder moves it.
    Fenced = "fenced",
    /// The queue was full.
    Overflow = "overflow",
    /// The backplane could not take it.
    Unavailable = "unavailable",
}

label! {
    /// What came of a tick.
    TickOutcome, "outcome":
    /// The snapshot was published.
    Published = "published",
    /// Somebody else was there first.
    AlreadyDone = "already_done",
    /// The node's idea of the time was off.
    WrongSlot = "wrong_slot",
    /// The lease was lost.
    Fenced = "fenced",
    /// No answer.
    Failed = "failed",
}

label! {
    /// Why the backplane gave no answer.
    BackplaneFailure, "reason":
    /// No connection.
    Unreachable = "unreachable",
    /// No answer in time.
    Timeout = "timeout",
    /// Too many calls wait.
    Backpressure = "backpressure",
    /// A key holds something unexpected.
    Corrupt = "corrupt",
    /// Too old, or another contract.
    Incompatible = "incompatible",
}

impl From<shared::close::CloseReason> for Close {
    fn from(reason: shared::close::CloseReason) -> Self {
        use shared::close::CloseReason;
        match reason {
            CloseReason::Normal => Self::Normal,
            CloseReason::ProtocolViolation => Self::Protocol,
            CloseReason::Binary => Self::Binary,
            CloseReason::InvalidPayload => Self::InvalidPayload,
            CloseReason::MessageRate => Self::MessageRate,
            CloseReason::MessageTooBig => Self::TooBig,
            CloseReason::Internal => Self::Internal,
            CloseReason::Draining => Self::Draining,
            CloseReason::Overloaded => Self::Overloaded,
            CloseReason::PongTimeout => Self::PongTimeout,
        }
    }
}

impl From<&crate::backplane::BackplaneError> for BackplaneFailure {
    fn from(error: &crate::backplane::BackplaneError) -> Self {
        use crate::backplane::BackplaneError;
        match error {
            BackplaneError::Unreachable => Self::Unreachable,
            BackplaneError::Timeout => Self::Timeout,
            BackplaneError::Backpressure => Self::Backpressure,
            BackplaneError::Corrupt(_) => Self::Corrupt,
            BackplaneError::Incompatible(_) => Self::Incompatible,
        }
    }
}
