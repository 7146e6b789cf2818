//! What clients send: kept whole when it is right, answered with the right code when it is not.

use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::hub::{Message, Peer};
use crate::metrics::{Close, Direction, Inbound};
use crate::session::{ControlDecision, Session};

/// FIN with text, binary, continuation; the same without FIN; close, ping, pong.
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const REST: u8 = 0x80;
const TEXT_BEGIN: u8 = 0x01;
const BINARY_BEGIN: u8 = 0x02;
const MORE: u8 = 0x00;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

const WELL_FORMED: &[u8] = br#"{"type":"pong"}"#;

// Inv. ISOLATION: each violation has its answer, and the client beside it goes on.
#[tokio::test]
async fn each_violation_has_its_close_code() {
    use CloseReason::{Binary, InvalidPayload, MessageTooBig, ProtocolViolation};
    let mut unmasked = vec![TEXT, u8::try_from(WELL_FORMED.len()).expect("short")];
    unmasked.extend_from_slice(WELL_FORMED);
    let huge = [&[TEXT, 0xff][..], &(1u64 << 62).to_be_bytes(), &[0; 4]].concat();
    let top_bit = [&[TEXT, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    let fragments_of = |fragment: &[u8], count: usize| {
        let mut bytes = masked(TEXT_BEGIN, fragment);
        (1..count).for_each(|_| bytes.extend(masked(MORE, fragment)));
        bytes
    };
    let rows: Vec<(&str, Vec<u8>, CloseReason)> = vec![
        ("unmasked", unmasked, ProtocolViolation),
        ("reserved bit 1", masked(TEXT | 0x40, WELL_FORMED), ProtocolViolation),
        ("reserved bit 2", masked(TEXT | 0x20, WELL_FORMED), ProtocolViolation),
        ("reserved bit 3", masked(TEXT | 0x10, WELL_FORMED), ProtocolViolation),
        ("unknown opcode 3", masked(0x83, b""), ProtocolViolation),
        ("unknown opcode 11", masked(0x8b, b""), ProtocolViolation),
        ("ping of 126 bytes", masked(PING, &[0; 126]), ProtocolViolation),
        ("pong of 126 bytes", masked(PONG, &[0; 126]), ProtocolViolation),
        ("close of 126 bytes", masked(CLOSE, &[0x03, 0xe8].repeat(63)), ProtocolViolation),
        ("fragmented ping", masked(0x09, b""), ProtocolViolation),
        ("fragmented close", masked(0x08, b""), ProtocolViolation),
        ("continuation of nothing", masked(REST, b"x"), ProtocolViolation),
        ("text within text", [masked(TEXT_BEGIN, b"x"), masked(TEXT, WELL_FORMED)].concat(), ProtocolViolation),
        ("text begun within text", [masked(TEXT_BEGIN, b"x"), masked(TEXT_BEGIN, b"y")].concat(), ProtocolViolation),
        ("binary within text", [masked(TEXT_BEGIN, b"x"), masked(BINARY, b"y")].concat(), ProtocolViolation),
        ("close of one byte", masked(CLOSE, b"x"), ProtocolViolation),
        ("close code 0", masked(CLOSE, &[0, 0]), ProtocolViolation),
        ("close code 999", masked(CLOSE, &999u16.to_be_bytes()), ProtocolViolation),
        ("close code 1004", masked(CLOSE, &1004u16.to_be_bytes()), ProtocolViolation),
        ("close code 1005", masked(CLOSE, &1005u16.to_be_bytes()), ProtocolViolation),
        ("close code 1006", masked(CLOSE, &1006u16.to_be_bytes()), ProtocolViolation),
        ("close code 1015", masked(CLOSE, &1015u16.to_be_bytes()), ProtocolViolation),
        ("close code 2999", masked(CLOSE, &2999u16.to_be_bytes()), ProtocolViolation),
        ("close code 5000", masked(CLOSE, &5000u16.to_be_bytes()), ProtocolViolation),
        ("close reason not UTF-8", masked(CLOSE, &[0x03, 0xe8, 0xff]), InvalidPayload),
        ("binary", masked(BINARY, b"x"), Binary),
        ("binary in fragments", [masked(BINARY_BEGIN, b"x"), masked(REST, b"y")].concat(), Binary),
        ("text not UTF-8", masked(TEXT, &[0xff, 0xfe]), InvalidPayload),
        ("fragment not UTF-8", masked(TEXT_BEGIN, &[b'"', 0xff]), InvalidPayload),
        ("character cut by the end", [masked(TEXT_BEGIN, b"\"\xe2\x82"), masked(REST, b"")].concat(), InvalidPayload),
        ("not JSON", masked(TEXT, b"pong"), InvalidPayload),
        ("empty text", masked(TEXT, b""), InvalidPayload),
        ("deep JSON", masked(TEXT, &[b'['; 4096]), InvalidPayload),
        ("4097 bytes", masked(TEXT, &[b' '; 4097]), MessageTooBig),
        ("4097 bytes in fragments", fragments_of(&[b' '; 241], 17), MessageTooBig),
        ("fragments without end that hold nothing", fragments_of(b"", 4097), MessageTooBig),
        ("a head that says 2^62 bytes", huge, MessageTooBig),
        ("a head whose length has the top bit", top_bit, MessageTooBig),
    ];
    let rig = Rig::new(HubSettings::default()).await;
    let mut beside = rig.join(Ids::Without).await;
    for (what, bytes, want) in &rows {
        let mut client = rig.join(Ids::Without).await;
        client.send(bytes).await;
        assert_eq!(client.closed().await, (Some(want.code()), want.text().to_owned()), "{what}");
        // The same bytes one by one: a parser must not depend on how they arrive.
        let mut client = rig.join(Ids::Without).await;
        for byte in bytes.chunks(1) {
            if client.stream.write_all(byte).await.is_err() {
                break;
            }
        }
        assert_eq!(client.closed().await.0, Some(want.code()), "{what}, byte by byte");
    }
    beside.say(r#"{"type":"pong"}"#).await;
    rig.pass(&[event(1, 1)]);
    assert_eq!(beside.text().await, event(1, 1).text);
    drop(beside);
    rig.emptied().await;
    let ended: u64 = [Close::Protocol, Close::Binary, Close::InvalidPayload, Close::TooBig]
        .into_iter()
        .map(|close| rig.metrics.closes.value(close))
        .sum();
    assert_eq!(ended, 2 * rows.len() as u64);
}

#[tokio::test]
async fn a_length_that_is_not_minimal_runs_into_the_frame_deadline() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut client = rig.join(Ids::Without).await;
    let mut bytes = vec![TEXT, 0x80 | 126, 0, 15, 0, 0, 0, 0];
    bytes.extend_from_slice(WELL_FORMED);
    client.send(&bytes).await;
    in_time("the message", async {
        while rig.metrics.messages.value(Direction::Received) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.sweep_at(10);
    rig.pass(&[event(1, 1)]);
    assert_eq!(client.text().await, event(1, 1).text, "it has ten seconds");
    rig.sweep_at(11);
    client.closed_for(CloseReason::ProtocolViolation).await;
    drop(client);
    rig.emptied().await;
}

#[tokio::test]
async fn bytes_that_came_with_the_handshake_are_read_first() {
    let rig = Rig::new(HubSettings::default()).await;
    let whole = masked(PING, b"first");
    let (head, rest) = whole.split_at(4);
    let mut client = rig.open(Ids::Without, head, None).await;
    client.text().await;
    client.send(rest).await;
    assert_eq!(client.next().await, Some(Frame { opcode: OpCode::Pong as u8, payload: b"first".to_vec() }));
    drop(client);
    rig.emptied().await;
}

#[tokio::test]
async fn a_flood_is_dropped_and_then_closed() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut client = rig.join(Ids::Without).await;
    for _ in 0..26 {
        client.say(r#"{"type":"hello"}"#).await;
    }
    client.closed_for(CloseReason::MessageRate).await;
    assert_eq!(rig.metrics.inbound.value(Inbound::Unknown), 5);
    assert_eq!(rig.metrics.inbound.value(Inbound::OverRate), 21);

    let mut pinger = rig.join(Ids::Without).await;
    let mut pongs = 0;
    pinger.send(&masked(PING, b"x").repeat(31)).await;
    while let Some(frame) = pinger.next().await {
        pongs += u32::from(frame.opcode == OpCode::Pong as u8);
    }
    assert_eq!(pongs, 10);
    assert_eq!(rig.metrics.inbound.value(Inbound::ControlOverRate), 21);
    drop((client, pinger));
    rig.emptied().await;
}

/// Whether it is text, and its bytes.
type Recorded = (bool, Vec<u8>);

/// Remembers what came.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Recorded>>>);

impl Handler for Recorder {
    fn message(&self, _: &Peer<'_>, _: &mut Session, message: Message<'_>) -> Result<(), CloseReason> {
        let message = match message {
            Message::Text(bytes) => (true, bytes.to_vec()),
            Message::Binary(bytes) => (false, bytes.to_vec()),
        };
        self.0.lock().expect("no panic").push(message);
        Ok(())
    }

    fn control(&self, _: &mut Session) -> ControlDecision {
        ControlDecision::Accept
    }
}

/// Texts of all lengths of characters, so that cuts fall within them.
fn random_text(random: &mut StdRng) -> Vec<u8> {
    let characters = ['a', 'ß', '€', '🦀'];
    let len = if random.random_ratio(1, 20) { 900 } else { 40 };
    let text: String = (0..random.random_range(0..len)).map(|_| characters[random.random_range(0..4)]).collect();
    text.into_bytes()
}

/// Whatever the frames are and however their bytes arrive, messages come out whole, once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twelve_thousand_frames_in_random_chunks() {
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let recorder = Recorder::default();
    let rig = Rig::with_handler(HubSettings::default(), Box::new(recorder.clone())).await;
    let mut client = rig.open(Ids::Without, b"", None).await;
    let (mut bytes, mut want, mut frames) = (Vec::new(), Vec::new(), 0);
    while frames < 12_000 {
        let is_text = random.random();
        let message = random_text(&mut random);
        let mut rest = &message[..];
        let mut opcode = if is_text { TEXT_BEGIN } else { BINARY_BEGIN };
        while random.random_ratio(1, 3) {
            let (fragment, after) = rest.split_at(random.random_range(0..=rest.len()));
            bytes.extend(masked(opcode, fragment));
            (rest, opcode) = (after, MORE);
            if random.random_ratio(1, 4) {
                bytes.extend(masked(PONG, &message[..random.random_range(0..=message.len().min(125))]));
                frames += 1;
            }
            frames += 1;
        }
        bytes.extend(masked(opcode | 0x80, rest));
        frames += 1;
        want.push((is_text, message));
    }
    bytes.extend(masked(CLOSE, &[0x03, 0xe8]));
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let most = if random.random() { 8 } else { 9000 };
        let (chunk, after) = rest.split_at(random.random_range(1..=most).min(rest.len()));
        client.send(chunk).await;
        rest = after;
        if random.random_ratio(1, 3) {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(client.closed().await.0, Some(1000));
    let got = recorder.0.lock().expect("no panic").clone();
    assert_eq!(got.len(), want.len(), "seed {seed}");
    assert!(got == want, "a message changed on its way; seed {seed}");
    drop(client);
    rig.emptied().await;
}
