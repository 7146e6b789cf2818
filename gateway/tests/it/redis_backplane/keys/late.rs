//! What arrives when its sender has given it up, and said something else since.

use super::*;

impl Planted {
    /// Remembers calls of scripts that are known.
    async fn listen(&mut self) {
        self.resp.call(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]).await;
    }

    /// The numbered calls that were made since.
    async fn heard(&mut self) -> Vec<Vec<String>> {
        let mut heard: Vec<Vec<String>> = Vec::new();
        for entry in self.resp.call(&["SLOWLOG", "GET", "100"]).await.many() {
            let command: Vec<String> = entry.many()[3].many().iter().map(|word| word.text().to_owned()).collect();
            if command[0].eq_ignore_ascii_case("EVALSHA") && command.iter().any(|word| word.contains(":told")) {
                heard.push(command);
            }
        }
        heard
    }

    /// A call arrives once more, and is refused.
    async fn arrives_late(&mut self, call: &[String]) {
        let words: Vec<&str> = call.iter().map(String::as_str).collect();
        let reply = self.resp.try_call(&words).await;
        assert!(matches!(&reply, Reply::Error(error) if error.starts_with("LATE")), "{reply:?}");
    }
}

// Inv. CAP: a count that was told in vain arrives after its successor, when the connection it was sent on is long gone
// (TCP repeats what was not acknowledged), and would hide a socket.
#[tokio::test]
async fn a_statement_that_arrives_after_its_successor_changes_nothing() {
    let mut planted = Planted::new().await;
    let address = AddressHash([1; 16]);
    let counted = ["HGET", &format!("{{analytics}}:ip:{address}"), &node(1).to_string()];
    planted.backplane.beat(node(1), Join::Enter, Duration::from_secs(60)).await.expect("an answer");
    // Each is made twice: as the scripts are known then, what is remembered is the whole call.
    for _ in 0..2 {
        planted.backplane.set_counts(node(1), &[(address, 1)]).await.expect("an answer");
        let admit = Admit { node: node(1), address, held: 1, wanted: 2, cap: 10 };
        assert_eq!(planted.backplane.admit(&admit).await, Ok(AdmitReply::Granted));
    }
    planted.listen().await;
    planted.backplane.set_counts(node(1), &[(address, 1)]).await.expect("an answer");
    let admit = Admit { node: node(1), address, held: 1, wanted: 2, cap: 10 };
    assert_eq!(planted.backplane.admit(&admit).await, Ok(AdmitReply::Granted));
    let sent = planted.heard().await;
    let about_sockets = |command: &&Vec<String>| command.iter().any(|word| word.contains(":ip:"));
    let sent: Vec<&Vec<String>> = sent.iter().filter(about_sockets).collect();
    assert_eq!(sent.len(), 2, "{sent:?}");

    planted.backplane.set_counts(node(1), &[(address, 5)]).await.expect("an answer");
    for late in sent {
        planted.arrives_late(late).await;
        assert_eq!(planted.resp.call(&counted).await.text(), "5");
    }
}

// Inv. CAP: the others were told that the node is dead, and let sockets in in the place of its own; it must learn that.
#[tokio::test]
async fn an_entry_that_arrives_late_revives_no_membership() {
    let mut planted = Planted::new().await;
    let minute = Duration::from_secs(60);
    planted.backplane.beat(node(1), Join::Enter, minute).await.expect("an answer");
    planted.listen().await;
    planted.backplane.beat(node(1), Join::Enter, minute).await.expect("an answer");
    let sent = planted.heard().await;
    let [first] = sent.as_slice() else { panic!("one call: {sent:?}") };
    planted.backplane.beat(node(1), Join::Enter, minute).await.expect("an answer");
    planted.backplane.beat(node(2), Join::Enter, minute).await.expect("an answer");
    // As if its lease had run out.
    planted.call("ZREM", "nodes", &[&node(1).to_string()]).await;
    planted.arrives_late(first).await;
    let woken = planted.backplane.beat(node(1), Join::Stay, minute).await.expect("an answer");
    assert_eq!((woken.standing, woken.members), (Standing::Gone, 1));
    let back = planted.backplane.beat(node(1), Join::Enter, minute).await.expect("an answer");
    assert_eq!((back.standing, back.members), (Standing::Member, 2));
}

/// The numbers of statements are kept for as long as earlier ones may be under way, but not for ever (Inv. BOUND).
#[tokio::test]
async fn who_has_said_nothing_for_an_hour_is_forgotten() {
    let mut planted = Planted::new().await;
    let now = planted.now().await;
    for (who, at) in [("a", now - HOUR - 60_000), ("b", now - 60_000)] {
        planted.call("HSET", "told", &[who, &format!("7 {at}")]).await;
    }
    planted.backplane.beat(node(1), Join::Enter, Duration::from_secs(6)).await.expect("an answer");
    let told = planted.call("HKEYS", "told", &[]).await;
    let told: Vec<_> = told.many().iter().map(Reply::text).collect();
    assert!(told.len() == 2 && told.contains(&"b"), "b, and who asks: {told:?}");
}

/// What a node published last is kept for as long as an earlier call may be under way, but not for ever (Inv. BOUND).
#[tokio::test]
async fn notes_of_publishers_that_are_an_hour_old_are_removed_few_at_a_time() {
    let mut planted = Planted::new().await;
    let now = planted.now().await;
    let recent = node(2).to_string();
    planted.call("HSET", "published", &[&recent, &format!("1 {} 1-1", now - 60_000)]).await;
    for old in 100..200 {
        planted.call("HSET", "published", &[&node(old).to_string(), &format!("1 {} 1-1", now - HOUR - 60_000)]).await;
    }
    let mut left = vec![planted.call("HLEN", "published", &[]).await.number()];
    for number in 1..=40 {
        bounded(planted.backplane.publish(&page(node(1), number))).await.expect("done");
        left.push(planted.call("HLEN", "published", &[]).await.number());
    }
    assert!(left.windows(2).all(|two| two[0] - two[1] <= 8), "bounded work: {left:?}");
    assert!(left.last().is_some_and(|left| *left <= 64), "{left:?}");
    assert_eq!(planted.call("HEXISTS", "published", &[&recent]).await.number(), 1);
}
