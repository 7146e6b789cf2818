//! The keys: what scripts make of what they find, and what they leave.

use gateway::backplane::{
    AddressHash, Admit, AdmitReply, Join, Lease, Seen, Standing, Tick, TickReply, Touch, TouchReply, VisitorHash,
};
use shared::ids::{EntryDigest, Epoch, Slot, StreamId};

use super::*;

mod late;

const INTERVAL: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(300);
const LEASE: Duration = Duration::from_secs(3);
/// So far ahead that no test run reaches it, in ms.
const HOUR: u64 = 3_600_000;

/// A backplane, and a second way to its keys.
struct Planted {
    redis: RedisServer,
    resp: Resp,
    backplane: Arc<RedisBackplane>,
}

impl Planted {
    async fn new() -> Self {
        let redis = scratch();
        let resp = Resp::to(&redis).await;
        let (backplane, _) = connect(&redis.url());
        Self { redis, resp, backplane }
    }

    /// Runs a command whose first key is `{analytics}:name`.
    async fn call(&mut self, command: &str, name: &str, rest: &[&str]) -> Reply {
        let key = format!("{{analytics}}:{name}");
        let mut words = vec![command, key.as_str()];
        words.extend_from_slice(rest);
        self.resp.call(&words).await
    }

    async fn now(&mut self) -> u64 {
        let time = self.resp.call(&["TIME"]).await;
        let part = |at: usize| time.many()[at].text().parse::<u64>().expect("a number");
        part(0) * 1000 + part(1) / 1000
    }

    async fn set(&mut self, name: &str, value: &str) {
        self.call("SET", name, &[value]).await;
    }

    async fn tick(&mut self, lease: Lease) -> Result<TickReply> {
        let slot = Slot::containing(self.now().await, 5000);
        self.backplane.tick(&Tick { lease, slot, interval: INTERVAL, window: WINDOW }).await
    }

    /// Ticks until the slot did not end between asking for the time and ticking.
    async fn tick_now(&mut self, lease: Lease) -> TickReply {
        loop {
            match self.tick(lease).await.expect("an answer") {
                TickReply::WrongSlot { .. } => {}
                reply => return reply,
            }
        }
    }
}

fn stored(slot: u64, epoch: u64, at: u64) -> String {
    format!(
        "{{\"active_visitors\":1,\"timestamp\":\"2025-12-08T10:30:00Z\",\"slot\":{slot},\"epoch\":{epoch},\
         \"at\":{at},\"hole\":0,\"since\":0}}"
    )
}

// Inv. FENCE, SLOT: whatever stands in the keys, an unfit tick writes nothing.
#[tokio::test]
async fn a_tick_obeys_the_keys() {
    let mut planted = Planted::new().await;
    let lease = Lease { node: node(1), epoch: Epoch(7) };
    let now = planted.now().await;
    let (me, other) = (node(1).to_string(), node(2).to_string());
    let later = now + HOUR;
    let rows = [
        ("no lease at all", None, None, "Fenced"),
        ("it ran out", Some(format!("7 {me} {now}")), None, "Fenced"),
        ("released", Some(format!("7 {me} 0")), None, "Fenced"),
        ("another reign", Some(format!("8 {me} {later}")), None, "Fenced"),
        ("another node", Some(format!("7 {other} {later}")), None, "Fenced"),
        ("done by a later reign", Some(format!("7 {me} {later}")), Some(stored(now + 5000, 9, now)), "AlreadyDone"),
        ("ours, and free", Some(format!("7 {me} {later}")), Some(stored(now - 6000, 9, now - 6000)), "Published"),
    ];
    for (what, ticker, snapshot, want) in rows {
        planted.resp.call(&["FLUSHALL"]).await;
        if let Some(ticker) = &ticker {
            planted.set("ticker", ticker).await;
        }
        if let Some(snapshot) = &snapshot {
            planted.set("snapshot", snapshot).await;
        }
        let reply = planted.tick_now(lease).await;
        assert!(format!("{reply:?}").starts_with(want), "{what}: {reply:?}");
        let entries = planted.call("XLEN", "events", &[]).await.number();
        assert_eq!(entries == 1, want == "Published", "{what}");
    }
}

#[tokio::test]
async fn a_clock_that_jumped_back_begins_a_new_reign() {
    let mut planted = Planted::new().await;
    let now = planted.now().await;
    let ahead = now + HOUR;
    planted.set("ticker", &format!("{ahead} {} {}", node(1), ahead + 3000)).await;
    planted.set("snapshot", &stored(ahead - ahead % 5000, ahead, ahead)).await;
    planted.call("ZADD", "visitors", &[&ahead.to_string(), "from-the-future"]).await;

    let old = Lease { node: node(1), epoch: Epoch(ahead) };
    let TickReply::Published { snapshot, lease, .. } = planted.tick_now(old).await else { panic!("not published") };
    assert_eq!(lease, Lease { node: node(1), epoch: Epoch(ahead + 1) });
    assert_eq!(snapshot.active_visitors, 1);
    let score: u64 = planted.call("ZSCORE", "visitors", &["from-the-future"]).await.text().parse().expect("ms");
    assert!(score < ahead, "it is forgotten one window from now");
    let entry = planted.backplane.newest(1).await.expect("an answer").pop().expect("the snapshot");
    assert_eq!(entry.tick.map(|mark| mark.epoch), Some(lease.epoch));
    // Inv. FENCE: the old epoch is no longer good.
    assert_eq!(planted.tick(old).await, Ok(TickReply::Fenced));
    assert!(matches!(planted.tick_now(lease).await, TickReply::AlreadyDone { .. } | TickReply::Published { .. }));
}

#[tokio::test]
async fn a_lease_from_before_the_jump_can_be_taken_and_epochs_never_fall() {
    let mut planted = Planted::new().await;
    let now = planted.now().await;
    let ahead = now + HOUR;
    planted.set("ticker", &format!("5 {} {ahead}", node(2))).await;
    planted.set("snapshot", &stored(0, ahead, now)).await;
    let taken = planted.backplane.claim(node(1), LEASE).await.expect("an answer").lease.expect("taken");
    assert_eq!(taken.epoch, Epoch(ahead + 1), "above the last snapshot's");
    planted.set("ticker", &format!("{ahead} {} 0", node(2))).await;
    let again = planted.backplane.claim(node(1), LEASE).await.expect("an answer").lease.expect("taken");
    assert_eq!(again.epoch, Epoch(ahead + 1), "above the last reign's");
    planted.set("ticker", &format!("{ahead} {} 0", node(1))).await;
    let anew = planted.backplane.claim(node(1), LEASE).await.expect("an answer").lease.expect("taken");
    assert_eq!(anew.epoch, Epoch(ahead + 1), "also for who held it last");
    // Who holds it goes on where it is.
    let kept = planted.backplane.claim(node(1), LEASE).await.expect("an answer").lease.expect("kept");
    assert_eq!(kept.epoch, Epoch(ahead + 1));
    assert_eq!(planted.call("PTTL", "ticker", &[]).await.number(), -1, "an epoch outlives every holder");
}

#[tokio::test]
async fn what_a_tick_writes() {
    let mut planted = Planted::new().await;
    let lease = planted.backplane.claim(node(1), LEASE).await.expect("an answer").lease.expect("free");
    let TickReply::Published { snapshot, now, .. } = planted.tick_now(lease).await else { panic!("not published") };
    let slot = now - now % 5000;
    let public = format!("\"active_visitors\":0,\"timestamp\":\"{}\"", snapshot.timestamp);
    let epoch = lease.epoch;
    assert_eq!(
        planted.call("GET", "snapshot", &[]).await.text(),
        format!("{{{public},\"slot\":{slot},\"epoch\":{epoch},\"at\":{now},\"hole\":0,\"since\":0}}")
    );
    let entries = planted.call("XRANGE", "events", &["-", "+"]).await;
    let fields: Vec<&str> = entries.many()[0].many()[1].many().iter().map(Reply::text).collect();
    let (data, slot, epoch) = (format!("{{{public}}}"), slot.to_string(), epoch.to_string());
    let want = ["type", "realtime_update", "data", &data, "slot", &slot, "epoch", &epoch, "entries", "1"];
    assert_eq!(fields, want);
}

/// Inv. BOUND: a million that left do not stop Redis at once.
#[tokio::test]
async fn a_tick_removes_a_bounded_number_and_counts_none_of_the_rest() {
    let mut planted = Planted::new().await;
    let long_ago = (planted.now().await - HOUR).to_string();
    let names: Vec<String> = (0..2500).map(|name| name.to_string()).collect();
    let pairs: Vec<&str> = names.iter().flat_map(|name| [long_ago.as_str(), name.as_str()]).collect();
    planted.call("ZADD", "visitors", &pairs).await;
    let lease = planted.backplane.claim(node(1), LEASE).await.expect("an answer").lease.expect("free");
    let TickReply::Published { snapshot, .. } = planted.tick_now(lease).await else { panic!("not published") };
    assert_eq!(snapshot.active_visitors, 0);
    assert_eq!(planted.call("ZCARD", "visitors", &[]).await.number(), 1500);
}

#[tokio::test]
async fn when_dead_nodes_refreshed_is_removed() {
    let mut planted = Planted::new().await;
    for dead in 100..170 {
        planted.call("HSET", "touched", &[&node(dead).to_string(), "1"]).await;
    }
    let lease = planted.backplane.claim(node(1), LEASE).await.expect("an answer").lease.expect("free");
    planted.tick_now(lease).await;
    assert_eq!(planted.call("EXISTS", "touched", &[]).await.number(), 0);
}

#[tokio::test]
async fn a_repeat_whose_entry_is_trimmed_away_names_an_id_that_nothing_has() {
    let mut planted = Planted::new().await;
    let request = page(node(1), 1);
    let PublishReply::Done { ids: first, .. } = planted.backplane.publish(&request).await.expect("done") else {
        panic!("not done")
    };
    planted.call("XTRIM", "events", &["MAXLEN", "0"]).await;
    let PublishReply::Done { ids: again, .. } = planted.backplane.publish(&request).await.expect("done") else {
        panic!("not done")
    };
    assert_eq!(again[0].stream, first[0].stream);
    assert_eq!(again[0].digest, EntryDigest::of("", b""));
    assert_eq!(planted.call("XLEN", "events", &[]).await.number(), 0, "not done again");
}

#[tokio::test]
async fn what_may_expire_does() {
    let mut planted = Planted::new().await;
    let salts = planted.backplane.salts(&[]).await.expect("an answer");
    for day in [salts.day, salts.day - 1] {
        let ttl = planted.call("TTL", &format!("salt:{day}"), &[]).await.number();
        assert!((48 * 3600 - 60..=48 * 3600).contains(&ttl), "{ttl}");
    }
    let address = AddressHash([1; 16]);
    planted.backplane.beat(node(1), Join::Enter, Duration::from_secs(6)).await.expect("an answer");
    let request = Admit { node: node(1), address, held: 0, wanted: 1, cap: 10 };
    assert_eq!(planted.backplane.admit(&request).await, Ok(AdmitReply::Granted));
    for _ in 0..2 {
        let ttl = planted.call("TTL", &format!("ip:{address}"), &[]).await.number();
        assert!((3600 - 60..=3600).contains(&ttl), "{ttl}");
        planted.call("PERSIST", &format!("ip:{address}"), &[]).await;
        planted.backplane.set_counts(node(1), &[(address, 1)]).await.expect("an answer");
    }
    // Inv. CAP: what is asked about and has not changed is not written, and does not expire meanwhile either.
    for (left, after) in [("3000", 2940..=3000), ("1700", 3540..=3600)] {
        planted.call("EXPIRE", &format!("ip:{address}"), &[left]).await;
        let replies = planted.backplane.readmit(node(1), 10, &[(address, 1)]).await.expect("an answer");
        assert_eq!(replies, [Ok(AdmitReply::Granted)]);
        let ttl = planted.call("TTL", &format!("ip:{address}"), &[]).await.number();
        assert!(after.contains(&ttl), "{ttl}");
    }
    planted.backplane.set_counts(node(1), &[(address, 0)]).await.expect("an answer");
    assert_eq!(planted.call("EXISTS", &format!("ip:{address}"), &[]).await.number(), 0);
}

#[tokio::test]
async fn more_counts_than_one_script_takes() {
    let mut planted = Planted::new().await;
    let address = |n: u16| AddressHash(std::array::from_fn(|at| n.to_be_bytes()[at % 2]));
    let counts: Vec<_> = (0..1201).map(|n| (address(n), u32::from(n) + 1)).collect();
    planted.backplane.set_counts(node(1), &counts).await.expect("an answer");
    for at in [0, 499, 500, 1000, 1200] {
        let count = planted.call("HGET", &format!("ip:{}", address(at)), &[&node(1).to_string()]).await;
        assert_eq!(count.text(), (at + 1).to_string());
    }
}

// Inv. CAP: it was a whole batch that was refused, again and again.
#[tokio::test]
async fn an_address_whose_key_holds_something_else_costs_the_others_nothing() {
    let mut planted = Planted::new().await;
    let (backplane, metrics) = connect(&planted.redis.url());
    backplane.beat(node(1), Join::Enter, Duration::from_secs(6)).await.expect("an answer");
    let address = |n: u16| AddressHash(std::array::from_fn(|at| n.to_be_bytes()[at % 2]));
    let key = |n: u16| format!("ip:{}", address(n));
    // One in each of two scripts.
    let strange = [7, 503];
    for n in strange {
        planted.set(&key(n), "precious").await;
    }
    let all: Vec<_> = (0..600).map(|n| (address(n), 1)).collect();
    assert_eq!(backplane.set_counts(node(1), &all).await, Ok(strange.map(address).to_vec()));
    for n in [0, 6, 8, 502, 504, 599] {
        assert_eq!(planted.call("HGET", &key(n), &[&node(1).to_string()]).await.text(), "1", "{n}");
    }
    let none = [(address(7), 0), (address(8), 0)];
    assert_eq!(backplane.set_counts(node(1), &none).await, Ok(vec![address(7)]));
    assert_eq!(planted.call("EXISTS", &key(8), &[]).await.number(), 0);

    // What is a number to Lua and none to anybody else would let everybody in.
    // And no node can make room for a fraction.
    for (n, count) in [(1, "nan"), (2, "-5"), (3, "x"), (4, "0.5")] {
        planted.call("HSET", &key(n), &[&node(1).to_string(), count]).await;
    }
    let replies = backplane.readmit(node(1), 10, &all[..9]).await.expect("an answer");
    for (n, reply) in (0..).zip(replies) {
        let is_strange = [1, 2, 3, 4, 7].contains(&n);
        assert_eq!(reply.is_err_and(|error| matches!(error, BackplaneError::Corrupt(_))), is_strange, "{n}");
    }
    for n in strange {
        assert_eq!(planted.call("GET", &key(n), &[]).await.text(), "precious");
    }
    assert_eq!(metrics.backplane_failures.value(BackplaneFailure::Corrupt), 3 + 5, "each is counted");
}

/// A hash of somebody else's in an address's place. Its numbers were taken for counts of dead nodes, and removed.
#[tokio::test]
async fn a_hash_of_something_else_is_left_alone() {
    let mut planted = Planted::new().await;
    planted.backplane.beat(node(1), Join::Enter, Duration::from_secs(6)).await.expect("an answer");
    let address = AddressHash([1; 16]);
    let key = format!("ip:{address}");
    let upper = "0123456789ABCDEF";
    let many: Vec<_> = (0..1_025).flat_map(|n| [node(1_000 + n).to_string(), "1".to_owned()]).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    for fields in [&["visits", "7", "bounces", "1"][..], &[upper, "1"], &["0123456789abcdef0", "1"], &many] {
        planted.resp.call(&["DEL", &format!("{{analytics}}:{key}")]).await;
        planted.call("HSET", &key, fields).await;
        let request = Admit { node: node(1), address, held: 0, wanted: 1, cap: 10 };
        let reply = planted.backplane.admit(&request).await;
        assert!(matches!(reply, Err(BackplaneError::Corrupt(_))), "{reply:?}");
        let replies = planted.backplane.readmit(node(1), 10, &[(address, 1)]).await.expect("an answer");
        assert!(matches!(replies[..], [Err(BackplaneError::Corrupt(_))]), "{replies:?}");
        if fields != many {
            for count in [0, 1] {
                let told = planted.backplane.set_counts(node(1), &[(address, count)]).await;
                assert_eq!(told, Ok(vec![address]), "{fields:?}");
            }
        }
        let left = planted.call("HLEN", &key, &[]).await.number();
        assert_eq!(usize::try_from(left), Ok(fields.len() / 2), "{fields:?}");
        assert_eq!(planted.call("TTL", &key, &[]).await.number(), -1, "{fields:?}");
    }
}

/// One call for each key, and what it is told when that key holds something else.
#[tokio::test]
async fn a_key_of_a_wrong_type_is_told_and_left_alone() {
    let mut planted = Planted::new().await;
    let salts = planted.backplane.salts(&[]).await.expect("an answer");
    let (salt, ip) = (format!("salt:{}", salts.day), format!("ip:{}", AddressHash([1; 16])));
    let all = ["events", "visitors", "snapshot", "ticker", "nodes", "touched", "generation", "themes", "published"];
    for name in all.into_iter().chain(["schema", "secret", "told", &salt, &ip]) {
        planted.resp.call(&["FLUSHALL"]).await;
        // No key of ours is a list.
        planted.call("RPUSH", name, &["precious"]).await;
        let mut told = 0;
        let replies = every_call(&planted.backplane, salts.day).await;
        let published = replies.iter().any(|(call, reply)| *call == "publish" && reply.is_ok());
        for (call, reply) in replies {
            match reply {
                Ok(()) => {}
                Err(BackplaneError::Corrupt(_)) => told += 1,
                Err(other) => panic!("{name}, {call}: {other}"),
            }
        }
        assert!(told > 0, "{name}: nobody was told");
        assert_eq!(planted.call("LRANGE", name, &["0", "-1"]).await.many()[0].text(), "precious", "{name}");
        assert_half_done_is_not_done(&mut planted, name, published).await;
    }
}

/// Redis does not undo what a failed script wrote, and a publish that failed is repeated: it must have left nothing.
async fn assert_half_done_is_not_done(planted: &mut Planted, broken: &str, published: bool) {
    if broken == "events" {
        return;
    }
    let entries = planted.call("XRANGE", "events", &["-", "+"]).await;
    let is_event = |entry: &Reply| entry.many()[1].many()[1].text() != "realtime_update";
    assert_eq!(entries.many().iter().any(is_event), published, "{broken}");
}

async fn every_call(backplane: &RedisBackplane, day: u64) -> Vec<(&'static str, Result<()>)> {
    let address = AddressHash([1; 16]);
    let admit = Admit { node: node(1), address, held: 0, wanted: 1, cap: 10 };
    let seen = vec![Seen { visitor: VisitorHash([1; 16]), alias: None }];
    let touch = Touch { day, fingerprint: "00000000".to_owned(), seen, round_of: Some(node(1)) };
    let mut publish = page(node(1), 1);
    let theme = Name::parse("theme", Some("backend")).expect("a name");
    publish.items.push(Publication::Event(Event::ThemeChange { theme }));
    publish.touch = Some(touch.clone());
    let beat = backplane.beat(node(1), Join::Enter, Duration::from_secs(6)).await;
    let claim = backplane.claim(node(1), LEASE).await;
    let lease = claim.as_ref().ok().and_then(|reply| reply.lease).unwrap_or(Lease { node: node(1), epoch: Epoch(1) });
    let tick = Tick { lease, slot: Slot(0), interval: INTERVAL, window: WINDOW };
    let readmit = backplane.readmit(node(1), 10, &[(address, 1)]).await;
    vec![
        ("beat", beat.map(|_| ())),
        ("claim", claim.map(|_| ())),
        ("tick", backplane.tick(&tick).await.map(|_| ())),
        ("publish", backplane.publish(&publish).await.map(|_| ())),
        ("read_from", backplane.read_from(StreamId::ZERO, 1, Duration::from_millis(1)).await.map(|_| ())),
        ("newest", backplane.newest(1).await.map(|_| ())),
        ("up_to", backplane.up_to(StreamId { ms: 1, seq: 1 }, 1).await.map(|_| ())),
        ("entry", backplane.entry(StreamId { ms: 1, seq: 1 }).await.map(|_| ())),
        ("snapshot", backplane.snapshot().await.map(|_| ())),
        ("admit", backplane.admit(&admit).await.map(|_| ())),
        ("readmit", readmit.and_then(|mut replies| replies.remove(0)).map(|_| ())),
        ("set_counts", backplane.set_counts(node(1), &[(address, 1)]).await.map(|_| ())),
        ("salts", backplane.salts(&[]).await.map(|_| ())),
        ("touch", backplane.touch(&touch).await.map(|_| ())),
        ("secret", backplane.secret(None).await.map(|_| ())),
        ("release", backplane.release(lease).await),
        ("leave", backplane.leave(node(1)).await),
    ]
}

#[tokio::test]
async fn a_key_with_a_wrong_value_is_told_and_left_alone() {
    let mut planted = Planted::new().await;
    let day = planted.backplane.salts(&[]).await.expect("an answer").day;
    let salt = format!("salt:{day}");
    let long = "9".repeat(400);
    let snapshot_without_slot = "{\"active_visitors\":1,\"timestamp\":\"2025-12-08T10:30:00Z\"}";
    let rows: [(&str, &[&str]); 8] = [
        ("ticker", &["", "x", "1 2", "-1 a 3", "1 a 2 3", "1 XYZ 3"]),
        ("snapshot", &["", "x", "[]", "1", snapshot_without_slot, "{\"active_visitors\":-1}"]),
        ("schema", &["", "x", "1.x"]),
        ("secret", &["", "x", &long]),
        (&salt, &["", "x", "00:11", ":"]),
        ("generation", &[]),
        ("visitors", &[]),
        ("events", &[]),
    ];
    for (name, values) in rows {
        for value in values {
            planted.resp.call(&["FLUSHALL"]).await;
            planted.set(name, value).await;
            let replies = every_call(&planted.backplane, day).await;
            let told = replies.iter().filter(|(_, reply)| matches!(reply, Err(BackplaneError::Corrupt(_)))).count();
            assert!(told > 0, "{name} = {value:?}: {replies:?}");
            assert_eq!(planted.call("GET", name, &[]).await.text(), *value);
        }
    }
    let counts =
        [("themes", "backend"), ("published", "0000000000000001"), ("ip:01010101010101010101010101010101", "a")];
    for (name, field) in counts {
        planted.resp.call(&["FLUSHALL"]).await;
        planted.call("HSET", name, &[field, "x"]).await;
        let replies = every_call(&planted.backplane, day).await;
        assert!(replies.iter().any(|(_, reply)| matches!(reply, Err(BackplaneError::Corrupt(_)))), "{name}");
    }
}

/// `HINCRBY` takes less for a number than Lua does, and what stands before it in a request would be there already.
#[tokio::test]
async fn a_count_that_cannot_be_added_to_leaves_no_half_of_a_publish() {
    let mut planted = Planted::new().await;
    let theme = Name::parse("theme", Some("backend")).expect("a name");
    let mut publish = page(node(1), 1);
    publish.items.push(Publication::Event(Event::ThemeChange { theme }));
    let largest = i64::MAX.to_string();
    for count in
        ["1.5", "1e3", "0x10", " 1", "1 ", "+1", "-1", "007", "", "inf", "nan", &largest, "99999999999999999999"]
    {
        planted.call("HSET", "themes", &["backend", count]).await;
        // A repeat may not add to it either.
        for _ in 0..2 {
            let reply = planted.backplane.publish(&publish).await;
            assert_eq!(reply, Err(BackplaneError::Corrupt("key themes: not a hash of counts")), "{count:?}");
            assert_eq!(planted.call("XLEN", "events", &[]).await.number(), 0, "{count:?}");
        }
        assert_eq!(planted.call("HGET", "themes", &["backend"]).await.text(), count, "left alone");
    }
    for (count, next) in [("0", "1"), ("9", "10"), ("999999999999998", "999999999999999")] {
        planted.call("HSET", "themes", &["backend", count]).await;
        publish.number += 1;
        assert!(planted.backplane.publish(&publish).await.is_ok(), "{count}");
        assert_eq!(planted.call("HGET", "themes", &["backend"]).await.text(), next);
    }
}

#[tokio::test]
async fn the_schema_may_differ_by_one() {
    let mut planted = Planted::new().await;
    for (schema, fits) in [("0", true), ("1", true), ("2", true), ("3", false)] {
        planted.set("schema", schema).await;
        let beat = planted.backplane.beat(node(1), Join::Enter, Duration::from_secs(6)).await;
        match beat {
            Ok(reply) => assert!(fits && reply.standing == Standing::Member, "{schema}"),
            Err(BackplaneError::Incompatible(_)) => assert!(!fits, "{schema}"),
            Err(other) => panic!("{schema}: {other}"),
        }
        assert_eq!(planted.call("GET", "schema", &[]).await.text(), schema, "never overwritten");
    }
}

#[tokio::test]
async fn members_from_before_the_jump_do_not_live_for_ever() {
    let mut planted = Planted::new().await;
    let now = planted.now().await;
    planted.call("ZADD", "nodes", &[&(now + HOUR).to_string(), &node(2).to_string()]).await;
    planted.backplane.beat(node(1), Join::Enter, Duration::from_secs(6)).await.expect("an answer");
    let end: u64 = planted.call("ZSCORE", "nodes", &[&node(2).to_string()]).await.text().parse().expect("ms");
    assert!(end < now + 60_000, "one lease to be heard again");
}

#[tokio::test]
async fn strangers_entries_are_read_as_they_are() {
    let mut planted = Planted::new().await;
    let key = b"{analytics}:events".as_slice();
    let strange: [&[&[u8]]; 3] = [
        &[b"XADD", key, b"1-1", b"a", b"b"],
        &[b"XADD", key, b"2-1", b"type", b"\xff\xfe", b"data", b"\x00\xff", b"visitor", b"\xff"],
        &[b"XADD", key, b"3-1", b"type", b"new_event", b"data", b"{}", b"type", b"twice", b"slot", b"x"],
    ];
    for command in strange {
        planted.resp.call_bytes(command).await;
    }
    let read = planted.backplane.read_from(StreamId::ZERO, 10, Duration::from_millis(1)).await.expect("an answer");
    assert_eq!(read, planted.backplane.newest(10).await.expect("an answer"));
    let kinds: Vec<&str> = read.iter().map(|entry| entry.kind.as_str()).collect();
    assert_eq!(kinds, ["", "\u{fffd}\u{fffd}", "twice"]);
    assert_eq!(read[1].data.as_ref(), b"\x00\xff");
    assert_eq!(read[2].tick, None);
    assert!(planted.redis.url().starts_with("redis+unix"));
}

#[tokio::test]
async fn an_unknown_script_is_made_known() {
    let mut planted = Planted::new().await;
    for number in 1..=3 {
        let reply = planted.backplane.publish(&page(node(1), number)).await.expect("an answer");
        assert!(matches!(reply, PublishReply::Done { touch: TouchReply::Done, .. }));
        planted.resp.call(&["SCRIPT", "FLUSH"]).await;
    }
    assert_eq!(planted.call("XLEN", "events", &[]).await.number(), 3);
}
