//! `POST /api/v1/events`.

use super::*;

const PATH: &str = "POST /api/v1/events HTTP/1.1\r\nHost: gateway:5000\r\n";

/// Status and body of an answer.
fn parts(answer: &str) -> (&str, &str) {
    (&answer[9..12], answer.split_once("\r\n\r\n").expect("a body").1)
}

async fn post(rig: &Rig, lines: &str, body: &str) -> String {
    let length = body.len();
    rig.ask(&format!("{PATH}Connection: close\r\n{lines}Content-Length: {length}\r\n\r\n{body}")).await
}

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n")
}

#[tokio::test]
async fn each_event_has_its_result_in_its_place() {
    let rig = Rig::new(Plan::default()).await;
    let answer = post(
        &rig,
        &bearer(),
        r#"[{"event_type":"page_view","page_url":"/cv?x=1","visitor_id":"v"},
            {"event_type":"page_view"},
            {"event_type":"cv_theme_change","theme":"backend"},
            7]"#,
    )
    .await;
    let (status, body) = parts(&answer);
    assert_eq!(status, "202");
    let report: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(report["accepted"], 2);
    let ids = [&report["results"][0]["id"], &report["results"][2]["id"]];
    let parsed = ids.map(|id| id.as_str().expect("an id").parse::<shared::ids::EventId>().expect("an id").stream);
    assert!(parsed[0] < parsed[1], "in order");
    assert_eq!(report["results"][1], serde_json::json!({"error": "page_url: missing"}));
    assert_eq!(report["results"][3], serde_json::json!({"error": "event: not an object"}));
    assert!(body.starts_with(r#"{"accepted":2,"results":[{"id":""#), "{body}");

    let (status, body) = (post(&rig, &bearer(), r#"{"event_type":"UPPER"}"#).await, "");
    assert_eq!(
        parts(&status),
        ("422", r#"{"accepted":0,"results":[{"error":"event_type: not 1 to 64 of a-z 0-9 _ . -"}]}"#),
        "{body}"
    );
    let metrics = &rig.public.metrics;
    assert_eq!((metrics.ingest.value(Ingest::Accepted), metrics.ingest.value(Ingest::Invalid)), (2, 3));
}

// Inv. ANON: nothing but the allowed fields stands in the stream; the trace context goes along.
#[tokio::test]
async fn what_reaches_the_stream() {
    let rig = Rig::new(Plan::default()).await;
    let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let event = r#"{"event_type":"page_view","page_url":"/cv?mail=a@b.c","visitor_id":"v-secret","email":"a@b.c"}"#;
    let answer = post(&rig, &format!("{}traceparent: {context}\r\n", bearer()), event).await;
    assert_eq!(parts(&answer).0, "202");
    let entries = rig.memory.newest(10).await.expect("answers");
    let [entry] = &entries[..] else { panic!("one entry: {entries:?}") };
    assert_eq!(entry.traceparent.as_deref(), Some(context));
    assert!(parts(&answer).1.contains(&entry.event_id().to_string()));
    let data = std::str::from_utf8(&entry.data).expect("UTF-8");
    assert!(data.starts_with(r#"{"event_type":"page_view","page_url":"/cv","timestamp":""#), "{data}");
    assert!(!format!("{entry:?}").contains("secret") && !data.contains('@'), "{entry:?}");
}

#[tokio::test]
async fn refused_as_a_whole() {
    let rig = Rig::new(Plan::default()).await;
    let good = r#"{"event_type":"page_view","page_url":"/"}"#;
    let malformed = r#"{"error":"body: not a JSON object or array of objects"}"#;
    for (body, error) in [
        ("", malformed),
        ("{", malformed),
        ("null", malformed),
        ("\u{feff}{}", malformed),
        ("[]", r#"{"error":"body: no events"}"#),
        (&format!("[{}]", vec!["{}"; 501].join(",")), r#"{"error":"body: more than 500 events"}"#),
        (&"[".repeat(60_000), malformed),
        (&format!("{}{}", "{\"a\":".repeat(10_000), "}".repeat(10_000)), malformed),
    ] {
        let answer = post(&rig, &bearer(), body).await;
        assert_eq!(parts(&answer), ("400", error), "{:.40}", body);
    }
    assert_eq!(rig.public.metrics.ingest_refused.value(IngestRefused::Malformed), 8);

    let unauthorized = post(&rig, "Authorization: Bearer a-token-for-test\r\n", good).await;
    assert_eq!(parts(&unauthorized), ("401", r#"{"error":"a valid bearer token is needed"}"#));
    assert!(unauthorized.contains("www-authenticate: Bearer realm=\"events\"\r\n"), "{unauthorized}");
    assert_eq!(parts(&post(&rig, "", good).await).0, "401");

    let get = rig.ask("GET /api/v1/events HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(get.starts_with("HTTP/1.1 405 ") && get.contains("allow: POST\r\n"), "{get}");

    let closed = Rig::new(Plan { http: HttpSettings::default(), ..Plan::default() }).await;
    assert_eq!(parts(&post(&closed, &bearer(), good).await).0, "404");

    let unserved = Rig::new(Plan { publishing: false, ..Plan::default() }).await;
    let unavailable = post(&unserved, &bearer(), good).await;
    assert_eq!(parts(&unavailable).0, "503", "{unavailable}");
    assert!(unavailable.contains("retry-after: 1\r\n"), "{unavailable}");
    assert_eq!(unserved.public.metrics.ingest.value(Ingest::Unavailable), 1);
}

/// Sends as much of `body` as the server takes, while reading: the answer must be readable although the server stopped
/// reading long before the end.
async fn upload(rig: &Rig, lines: &str, body: Vec<u8>) -> String {
    let (mut reader, mut writer) = rig.connect().await.into_split();
    writer.write_all(format!("{PATH}{}{lines}\r\n", bearer()).as_bytes()).await.expect("writes");
    let sending = async move {
        // The server closes at some point: a failing write is expected.
        let _ = writer.write_all(&body).await;
        writer
    };
    let reading = async {
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let byte = tokio::time::timeout(DEADLINE, reader.read_u8()).await.expect("an answer in time");
            answer.push(byte.expect("the answer comes before any reset"));
        }
        String::from_utf8(answer).expect("UTF-8")
    };
    let (answer, _writer) = tokio::join!(reading, sending);
    answer
}

// Inv. BOUND
#[tokio::test]
async fn a_body_above_the_limit_gets_an_answer_that_can_be_read() {
    let rig = Rig::new(Plan::default()).await;
    let ten_megabytes = 10 * 1024 * 1024;
    let too_large = ("413", r#"{"error":"body: larger than allowed"}"#);
    let announced = format!("Content-Length: {ten_megabytes}\r\n");
    assert_eq!(parts(&upload(&rig, &announced, vec![b'x'; ten_megabytes]).await), too_large);
    // Nothing of the body has to be sent.
    assert_eq!(parts(&upload(&rig, &announced, Vec::new()).await), too_large);
    let chunk = [b"4000\r\n".to_vec(), vec![b'x'; 0x4000], b"\r\n".to_vec()].concat();
    assert_eq!(parts(&upload(&rig, "Transfer-Encoding: chunked\r\n", chunk.repeat(640)).await), too_large);
    assert_eq!(rig.public.metrics.ingest_refused.value(IngestRefused::TooLarge), 3);
    // Just within the limit it is read.
    let blanks = " ".repeat(64 * 1024 - 2);
    assert_eq!(parts(&post(&rig, &bearer(), &format!("[]{blanks}")).await).0, "400");
}

// Who first sends all and then reads is not reset, which in many a TCP stack would eat the answer.
#[tokio::test]
async fn an_early_answer_survives_the_rest_of_the_body() {
    let rig = Rig::new(Plan::default()).await;
    let length = 192 * 1024;
    let mut stream = rig.connect().await;
    stream.write_all(format!("{PATH}{}Content-Length: {length}\r\n\r\n", bearer()).as_bytes()).await.expect("writes");
    rig.until("it is refused", |m| m.ingest_refused.value(IngestRefused::TooLarge) == 1).await;
    // Chunk by chunk: what meets a closed connection comes back as a reset, which the next chunk meets.
    for chunk in vec![b'x'; length].chunks(16 * 1024) {
        stream.write_all(chunk).await.expect("the server still reads");
    }
    stream.shutdown().await.expect("the server still reads");
    assert_eq!(parts(&rest(&mut stream).await).0, "413");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let mut plan = Plan::default();
    plan.http.body_time_max = Duration::from_millis(100);
    let rig = Rig::new(plan).await;
    let answer = upload(&rig, "Content-Length: 100\r\n", b"[".to_vec()).await;
    assert_eq!(parts(&answer), ("408", r#"{"error":"body: did not arrive in time"}"#));
}
