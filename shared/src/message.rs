//! The wire: every message that a client reads or writes.
//!
//! A message is encoded once and the same bytes go to every socket, so encoding may be plain; what matters is that
//! the text is exactly the documented one: compact JSON, keys in the seed page's order, nothing added (Inv. WIRE).
//! What a client opts into is appended at the end of the envelope (`id`) or of `data` (`stale`), so that both forms
//! share one encoder.
//!
//! The public messages ([`PublicMessage`]) are also what stands in the stream, as fields `type` and `data`. Reading
//! them back is the second half of the allow-list: only the named fields survive, whatever a producer added
//! (Inv. ANON).

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::field::{EventError, Name, PagePath};
use crate::ids::EventId;
use crate::time::Timestamp;

/// The longest message that a client may send, in bytes; a longer one closes the socket with 1009.
pub const CLIENT_MESSAGE_BYTES_MAX: usize = 4096;

/// How many visitors were active, and when that was counted. `data` of `init` and `realtime_update`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Visitors seen within the window.
    pub active_visitors: u64,
    /// Redis's time of the count.
    pub timestamp: Timestamp,
}

/// Whether a snapshot is the present truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// It is.
    Fresh,
    /// It is old and nothing newer could be learned; the client is told by `"stale":true`.
    Stale,
}

/// Share of all theme views, in tenths of a percent: 258 is `25.8` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percentage(u16);

impl Percentage {
    /// Rounds `percent` to one decimal; none outside of 0 to 100.
    #[must_use]
    pub fn from_percent(percent: f64) -> Option<Self> {
        let tenths = (percent * 10.0).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie in 0..=1000")]
        (0.0..=1000.0).contains(&tenths).then_some(Self(tenths as u16))
    }

    /// `part` of `whole`, rounded half up; zero of nothing is zero.
    #[must_use]
    pub fn of(part: u64, whole: u64) -> Self {
        // In whole numbers, so that an exact half is one: 6.25 % is 6.3 wherever it is computed.
        let (part, whole) = (u128::from(part.min(whole)), u128::from(whole.max(1)));
        let tenths = (part * 2000 + whole) / (whole * 2);
        Self(u16::try_from(tenths).unwrap_or(1000))
    }
}

impl Serialize for Percentage {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Always one decimal (`50.0`): the shortest text of tenths/10 has exactly one.
        serializer.serialize_f64(f64::from(self.0) / 10.0)
    }
}

/// `data` of `new_event`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewEvent {
    /// What happened.
    pub event_type: Name,
    /// On which page: a path without query.
    pub page_url: PagePath,
    /// When.
    pub timestamp: Timestamp,
}

/// `data` of `theme_stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ThemeStats {
    /// Which theme.
    pub theme: Name,
    /// Its views so far.
    pub count: u64,
    /// Its share of all theme views.
    pub percentage: Percentage,
}

/// `data` of `letter_generated`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LetterGenerated {
    /// Which kind of letter.
    pub letter_type: Name,
    /// When.
    pub timestamp: Timestamp,
}

/// What stands in the stream and reaches every viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicMessage {
    /// The number, every tick.
    RealtimeUpdate(Snapshot),
    /// Something happened.
    NewEvent(NewEvent),
    /// A theme was viewed.
    ThemeStats(ThemeStats),
    /// A letter was generated.
    LetterGenerated(LetterGenerated),
}

/// The kinds of messages that a server sends; a closed set of labels and of filter bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// First message of every socket.
    Init,
    /// Each tick.
    RealtimeUpdate,
    /// An event.
    NewEvent,
    /// A theme's numbers.
    ThemeStats,
    /// A letter.
    LetterGenerated,
    /// Application heartbeat.
    Ping,
    /// Something is missing (only to clients with ids).
    Gap,
}

impl MessageKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Init,
        Self::RealtimeUpdate,
        Self::NewEvent,
        Self::ThemeStats,
        Self::LetterGenerated,
        Self::Ping,
        Self::Gap,
    ];

    /// The `type` on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::RealtimeUpdate => "realtime_update",
            Self::NewEvent => "new_event",
            Self::ThemeStats => "theme_stats",
            Self::LetterGenerated => "letter_generated",
            Self::Ping => "ping",
            Self::Gap => "gap",
        }
    }
}

/// A set of message kinds: what a socket wants to hear (`types=` in its URL).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageKinds(u8);

/// `types=` names something that no server sends, or that cannot be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("types: choose from realtime_update, new_event, theme_stats, letter_generated")]
pub struct KindsError;

impl MessageKinds {
    /// Everything: what a socket without `types=` hears.
    pub const ALL: Self = Self(0x7f);

    /// Reads the comma list of `types=`. `init`, `ping` and `gap` always come and need not be named.
    ///
    /// # Errors
    /// [`KindsError`] for an unknown name or an empty list.
    pub fn parse(list: &str) -> Result<Self, KindsError> {
        let always = [MessageKind::Init, MessageKind::Ping, MessageKind::Gap];
        let mut kinds = Self(0);
        for name in list.split(',') {
            let kind = MessageKind::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or(KindsError)?;
            kinds.0 |= Self::bit(kind);
        }
        for kind in always {
            kinds.0 |= Self::bit(kind);
        }
        Ok(kinds)
    }

    /// Whether `kind` is in the set.
    #[must_use]
    pub fn contains(self, kind: MessageKind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    fn bit(kind: MessageKind) -> u8 {
        1 << (kind as u8)
    }
}

impl fmt::Debug for MessageKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(MessageKind::ALL.into_iter().filter(|kind| self.contains(*kind))).finish()
    }
}

/// Serialises the envelope of a message with `data`.
#[derive(Serialize)]
struct Envelope<'a, D: Serialize> {
    r#type: &'a str,
    data: D,
}

/// `data` of a snapshot message: the seed's two keys, and `stale` last when it is so.
#[derive(Serialize)]
struct SnapshotData {
    #[serde(flatten)]
    snapshot: Snapshot,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<bool>,
}

fn encode(value: &impl Serialize) -> String {
    #[expect(clippy::expect_used, reason = "structs of strings and numbers always serialise; no map keys, no IO")]
    serde_json::to_string(value).expect("plain structs serialise")
}

fn encode_snapshot(kind: MessageKind, snapshot: Snapshot, freshness: Freshness) -> String {
    let stale = (freshness == Freshness::Stale).then_some(true);
    encode(&Envelope { r#type: kind.as_str(), data: SnapshotData { snapshot, stale } })
}

/// `{"type":"init","data":{…}}`: the first message of every socket.
#[must_use]
pub fn encode_init(snapshot: Snapshot, freshness: Freshness) -> String {
    encode_snapshot(MessageKind::Init, snapshot, freshness)
}

/// `{"type":"realtime_update","data":{…}}`.
#[must_use]
pub fn encode_update(snapshot: Snapshot, freshness: Freshness) -> String {
    encode_snapshot(MessageKind::RealtimeUpdate, snapshot, freshness)
}

/// `{"type":"ping","timestamp":"…"}`.
#[must_use]
pub fn encode_ping(timestamp: Timestamp) -> String {
    #[derive(Serialize)]
    struct Ping {
        r#type: &'static str,
        timestamp: Timestamp,
    }
    encode(&Ping { r#type: MessageKind::Ping.as_str(), timestamp })
}

/// `{"type":"gap","from":"…","to":"…"}`: after `from`, which the client surely has, and up to `to`, which it will
/// not get, messages are missing. Sent to clients with ids only.
#[must_use]
pub fn encode_gap(from: Option<EventId>, to: Option<EventId>) -> String {
    #[derive(Serialize)]
    struct Gap {
        r#type: &'static str,
        from: Option<EventId>,
        to: Option<EventId>,
    }
    encode(&Gap { r#type: MessageKind::Gap.as_str(), from, to })
}

/// The same message with `,"id":"…"` as last key of its envelope, for sockets with `ids=1`.
#[must_use]
pub fn with_id(encoded: &str, id: EventId) -> String {
    match encoded.strip_suffix('}') {
        Some(open) => format!("{open},\"id\":\"{id}\"}}"),
        None => encoded.to_owned(),
    }
}

impl PublicMessage {
    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::RealtimeUpdate(_) => MessageKind::RealtimeUpdate,
            Self::NewEvent(_) => MessageKind::NewEvent,
            Self::ThemeStats(_) => MessageKind::ThemeStats,
            Self::LetterGenerated(_) => MessageKind::LetterGenerated,
        }
    }

    /// The message as every viewer gets it.
    #[must_use]
    pub fn encode(&self) -> String {
        let kind = self.kind().as_str();
        match self {
            Self::RealtimeUpdate(data) => encode_update(*data, Freshness::Fresh),
            Self::NewEvent(data) => encode(&Envelope { r#type: kind, data }),
            Self::ThemeStats(data) => encode(&Envelope { r#type: kind, data }),
            Self::LetterGenerated(data) => encode(&Envelope { r#type: kind, data }),
        }
    }

    /// The `data` object alone, as it stands in the stream.
    #[must_use]
    pub fn encode_data(&self) -> String {
        match self {
            Self::RealtimeUpdate(data) => encode(data),
            Self::NewEvent(data) => encode(data),
            Self::ThemeStats(data) => encode(data),
            Self::LetterGenerated(data) => encode(data),
        }
    }

    /// Reads a stream entry's `type` and `data`. Only the documented fields are taken over; `data` is used as
    /// scratch space and is garbage afterwards.
    ///
    /// # Errors
    /// [`EventError`] naming the first field that does not fit.
    // Inv. ANON: the returned value has no room for anything but the named fields.
    pub fn decode(kind: &str, data: &mut [u8]) -> Result<Self, EventError> {
        let kind = MessageKind::ALL.into_iter().find(|known| known.as_str() == kind);
        let unknown = EventError::new("type", "unknown");
        let data: RawData<'_> = match kind {
            Some(
                MessageKind::RealtimeUpdate
                | MessageKind::NewEvent
                | MessageKind::ThemeStats
                | MessageKind::LetterGenerated,
            ) => simd_json::serde::from_slice(data).map_err(|_| EventError::new("data", "malformed"))?,
            _ => return Err(unknown),
        };
        match kind {
            Some(MessageKind::RealtimeUpdate) => Ok(Self::RealtimeUpdate(Snapshot {
                active_visitors: data.active_visitors.ok_or(EventError::new("active_visitors", "missing"))?,
                timestamp: data.timestamp()?,
            })),
            Some(MessageKind::NewEvent) => Ok(Self::NewEvent(NewEvent {
                event_type: Name::parse("event_type", data.event_type.as_deref())?,
                page_url: PagePath::parse("page_url", data.page_url.as_deref())?,
                timestamp: data.timestamp()?,
            })),
            Some(MessageKind::ThemeStats) => Ok(Self::ThemeStats(ThemeStats {
                theme: Name::parse("theme", data.theme.as_deref())?,
                count: data.count.ok_or(EventError::new("count", "missing"))?,
                percentage: data
                    .percentage
                    .and_then(Percentage::from_percent)
                    .ok_or(EventError::new("percentage", "not within 0 to 100"))?,
            })),
            Some(MessageKind::LetterGenerated) => Ok(Self::LetterGenerated(LetterGenerated {
                letter_type: Name::parse("letter_type", data.letter_type.as_deref())?,
                timestamp: data.timestamp()?,
            })),
            _ => Err(unknown),
        }
    }
}

/// The fields of all public messages' `data`; what is not named here does not exist.
#[derive(Deserialize)]
struct RawData<'a> {
    active_visitors: Option<u64>,
    #[serde(borrow)]
    timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    event_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    page_url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    theme: Option<Cow<'a, str>>,
    count: Option<u64>,
    percentage: Option<f64>,
    #[serde(borrow)]
    letter_type: Option<Cow<'a, str>>,
}

impl RawData<'_> {
    fn timestamp(&self) -> Result<Timestamp, EventError> {
        let text = self.timestamp.as_deref().ok_or(EventError::new("timestamp", "missing"))?;
        Timestamp::parse(text).map_err(|_| EventError::new("timestamp", "not an RFC 3339 time in UTC"))
    }
}

/// What a client's message means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientMessage {
    /// Answer to a `ping`; its timestamp is optional and not looked at.
    Pong,
    /// Well-formed, but of a type that this server does not know: ignored and counted.
    Unknown,
}

/// The message is not a JSON object with a `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object with a type")]
pub struct ClientMessageError;

/// Scratch memory of [`ClientMessage::parse`], reused from message to message; one per thread.
#[derive(Default)]
pub struct ParseBuffers(simd_json::Buffers);

impl fmt::Debug for ParseBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ParseBuffers")
    }
}

impl ClientMessage {
    /// Reads a client's text message. `text` is used as scratch space and is garbage afterwards. The caller has
    /// bounded its length by [`CLIENT_MESSAGE_BYTES_MAX`].
    ///
    /// # Errors
    /// [`ClientMessageError`] for what is not JSON; JSON that is no object with a `type` is [`Self::Unknown`].
    pub fn parse(text: &mut [u8], buffers: &mut ParseBuffers) -> Result<Self, ClientMessageError> {
        let value = simd_json::to_borrowed_value_with_buffers(text, &mut buffers.0).map_err(|_| ClientMessageError)?;
        let kind = match &value {
            simd_json::BorrowedValue::Object(object) => object.get("type"),
            _ => None,
        };
        match kind {
            Some(simd_json::BorrowedValue::String(kind)) if kind == "pong" => Ok(Self::Pong),
            _ => Ok(Self::Unknown),
        }
    }
}
