//! How sockets end, and what their ends leave behind.

use std::sync::Mutex;

use super::*;
use crate::backplane::AddressHash;
use crate::hub::PanicOn;
use crate::metrics::Close;

#[tokio::test]
async fn a_client_that_answers_pings_stays_and_a_silent_one_goes() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut alive = rig.join(Ids::Without).await;
    let mut silent = rig.join(Ids::Without).await;
    rig.sweep_at(30);
    rig.pass(&[event(1, 1)]);
    assert_eq!(alive.text().await, event(1, 1).text, "no ping before 30 s are over");
    assert_eq!(silent.text().await, event(1, 1).text);
    rig.sweep_at(31);
    assert!(alive.text().await.starts_with(r#"{"type":"ping","timestamp":""#));
    alive.say(r#"{"type":"pong"}"#).await;
    rig.pongs(1).await;
    rig.sweep_at(41);
    assert!(silent.text().await.starts_with(r#"{"type":"ping""#));
    silent.closed_for(CloseReason::PongTimeout).await;
    rig.sweep_at(61);
    rig.sweep_at(62);
    assert!(alive.text().await.starts_with(r#"{"type":"ping""#));
    assert_eq!(rig.metrics.closes.value(Close::PongTimeout), 1);
    drop((alive, silent));
    rig.emptied().await;
}

// Inv. ISOLATION: a panic in one connection's task ends that connection, says 1011, and nobody else notices.
#[tokio::test]
async fn a_panic_costs_one_connection() {
    let rig = Rig::new(HubSettings { panic_on: Some(PanicOn::ClientMessage), ..HubSettings::default() }).await;
    let mut other = rig.join(Ids::Without).await;
    let mut wild = rig.join(Ids::Without).await;
    wild.say(PanicOn::TEXT).await;
    wild.closed_for(CloseReason::Internal).await;
    drop(wild);
    rig.pass(&[event(1, 1)]);
    assert_eq!(other.text().await, event(1, 1).text);
    in_time("the removal", async {
        while rig.hub.len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(rig.metrics.closes.value(Close::Internal), 1);
    drop(other);
    rig.emptied().await;
}

#[tokio::test]
async fn a_close_is_answered_with_its_own_code() {
    let check = async |payload: &[u8], want: Option<u16>| {
        let rig = Rig::new(HubSettings::default()).await;
        let mut client = rig.join(Ids::Without).await;
        client.send(&masked(0x88, payload)).await;
        assert_eq!(client.closed().await, (want, String::new()));
        drop(client);
        rig.emptied().await;
        assert_eq!(rig.metrics.closes.value(Close::Normal), 1);
        assert_eq!(rig.metrics.errors.value(), 0);
    };
    check(b"", None).await;
    check(&[0x03, 0xe8], Some(1000)).await;
    check(&[0x03, 0xe9, b'b', b'y', b'e'], Some(1001)).await;
    check(&[0x0f, 0xa0], Some(4000)).await;
}

#[tokio::test]
async fn a_connection_that_breaks_is_an_error_and_is_gone() {
    let rig = Rig::new(HubSettings::default()).await;
    drop(rig.join(Ids::Without).await);
    rig.emptied().await;
    assert_eq!(rig.metrics.closes.value(Close::Io), 1);
    assert_eq!(rig.metrics.errors.value(), 1);
}

// The close code must survive what the client is still sending: no reset overtakes it.
#[tokio::test]
async fn the_close_code_reaches_a_client_that_is_still_talking() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut client = rig.join(Ids::Without).await;
    client.send(&masked(0x82, b"binary")).await;
    for _ in 0..20 {
        client.send(&masked(0x81, &[b'x'; 4000])).await;
    }
    client.closed_for(CloseReason::Binary).await;
    drop(client);
    rig.emptied().await;
    assert_eq!(rig.metrics.closes.value(Close::Binary), 1);
}

// Inv. BOUND: a peer that goes on talking after the close is cut off by the bytes.
#[tokio::test]
async fn lingering_has_an_end() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut client = rig.join(Ids::Without).await;
    client.send(&masked(0x82, b"binary")).await;
    let chunk = vec![0; 64 * 1024];
    let flood = async { while client.stream.write_all(&chunk).await.is_ok() {} };
    in_time("the end of the server's patience", flood).await;
    drop(client);
    rig.emptied().await;
}

#[derive(Debug)]
struct Slot(Arc<Mutex<Vec<&'static str>>>);

impl SocketPermit for Slot {
    fn address(&self) -> AddressHash {
        AddressHash([7; 16])
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.lock().expect("no panic").push("slot");
    }
}

// Inv. CAP: whoever comes back at once finds the slot of the socket that was sent away free.
#[tokio::test]
async fn draining_frees_the_address_before_it_tells_the_client() {
    let rig = Rig::new(HubSettings::default()).await;
    let given_back = Arc::new(Mutex::new(Vec::new()));
    let mut client = rig.open(Ids::Without, b"", Some(Box::new(Slot(Arc::clone(&given_back))))).await;
    let mut sockets = Vec::new();
    rig.hub.for_each(|conn| sockets.push(Arc::clone(conn)));
    let [conn] = &sockets[..] else { panic!("one socket") };
    assert_eq!(conn.address(), Some(AddressHash([7; 16])));
    rig.hub.close_draining(conn.id(), 1500);
    assert_eq!(*given_back.lock().expect("no panic"), ["slot"]);
    assert_eq!(conn.address(), None);
    assert_eq!(client.closed().await, (Some(1012), r#"{"retry_after_ms":1500}"#.to_owned()));
    drop(client);
    rig.emptied().await;
    assert_eq!(rig.metrics.closes.value(Close::Draining), 1);
    assert_eq!(rig.metrics.errors.value(), 0);
}

#[tokio::test]
async fn a_permit_is_given_back_once_however_the_socket_ends() {
    let rig = Rig::new(HubSettings::default()).await;
    let given_back = Arc::new(Mutex::new(Vec::new()));
    drop(rig.open(Ids::Without, b"", Some(Box::new(Slot(Arc::clone(&given_back))))).await);
    rig.emptied().await;
    assert_eq!(*given_back.lock().expect("no panic"), ["slot"]);
}

#[tokio::test]
async fn a_close_that_the_reader_never_takes_is_cut_short() {
    let rig = Rig::new(HubSettings { socket_send_buffer_bytes: 4096, ..HubSettings::default() }).await;
    let client = rig.join(Ids::Without).await;
    while rig.metrics.outbox_bytes.value() == 0 {
        rig.pass(&[event(1, 1000)]);
        tokio::task::yield_now().await;
    }
    let id = shared::ids::ConnId(1);
    rig.hub.close(id, CloseReason::PongTimeout);
    rig.sweep_at(5);
    assert_eq!(rig.hub.len(), 1);
    rig.sweep_at(6);
    rig.emptied().await;
    assert_eq!(rig.metrics.closes.value(Close::PongTimeout), 1);
    drop(client);
}

// Inv. ISOLATION: sockets of a runtime that is shut down, or of a task that is dropped, leave nothing behind.
#[test]
fn a_dropped_task_takes_its_socket_along() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (rig, client) = runtime.block_on(async {
        let rig = Rig::new(HubSettings::default()).await;
        let client = rig.join(Ids::Without).await;
        (rig, client)
    });
    assert_eq!(rig.hub.len(), 1);
    drop(runtime);
    assert_eq!(rig.hub.len(), 0);
    assert_eq!(rig.metrics.connections_active.value(), 0);
    drop(client);
}
