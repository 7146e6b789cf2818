//! A client that listens in the background and remembers everything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::{Client, End, Incoming, Message};
use super::wait::SOON;

/// One message and when it came.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// When.
    pub(crate) at: Instant,
    /// What.
    pub(crate) text: String,
}

/// What was heard so far.
#[derive(Debug, Default)]
struct Tape {
    heard: Vec<Heard>,
    end: Option<End>,
}

/// Reads a client's socket until it ends. The task ends with the recorder.
#[derive(Debug)]
pub(crate) struct Recorder {
    tape: Arc<watch::Sender<Tape>>,
    _task: JoinSet<()>,
}

impl Recorder {
    /// Takes a new client over and waits for its first message: it hears what comes after that. What is published
    /// between the answer to its handshake and its `init` is none of its business.
    pub(crate) async fn join(client: Client) -> Self {
        let recorder = Self::of(client);
        recorder.until("the first message", SOON, |heard| !heard.is_empty()).await;
        recorder
    }

    /// Takes over a client that has read its `init`.
    pub(crate) fn of(mut client: Client) -> Self {
        let tape = Arc::new(watch::Sender::new(Tape::default()));
        let writer = Arc::clone(&tape);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                match client.next().await {
                    Incoming::Text(text) => {
                        writer.send_modify(|tape| tape.heard.push(Heard { at: Instant::now(), text }));
                    }
                    Incoming::Pong(_) => {}
                    Incoming::End(end) => break writer.send_modify(|tape| tape.end = Some(end)),
                }
            }
        });
        Self { tape, _task: task }
    }

    /// Everything that was heard so far.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.tape.borrow().heard.clone()
    }

    /// The messages of these types that were heard so far.
    pub(crate) fn messages(&self, kinds: &[&str]) -> Vec<Message> {
        let all = self.heard().into_iter().map(|heard| Message::of(heard.text));
        all.filter(|message| kinds.contains(&message.kind())).collect()
    }

    /// How the socket ended, if it has.
    pub(crate) fn end(&self) -> Option<End> {
        self.tape.borrow().end.clone()
    }

    /// Panics when the socket has ended.
    pub(crate) fn assert_open(&self) {
        assert_eq!(self.end(), None, "the socket ended");
    }

    /// Waits until what was heard satisfies `enough`; panics when it does not within `within`, or the socket ends.
    pub(crate) async fn until(&self, what: &str, within: Duration, enough: impl Fn(&[Heard]) -> bool) {
        let mut tape = self.tape.subscribe();
        let done = tape.wait_for(|tape| enough(&tape.heard) || tape.end.is_some());
        let satisfied = match timeout(within, done).await {
            Ok(tape) => enough(&tape.expect("the sender lives as long as the recorder").heard),
            Err(_) => false,
        };
        if !satisfied {
            let tape = self.tape.borrow();
            let last: Vec<&str> = tape.heard.iter().rev().take(10).rev().map(|heard| heard.text.as_str()).collect();
            panic!("not heard within {within:?}: {what}; end: {:?}; last of {}: {last:#?}", tape.end, tape.heard.len());
        }
    }

    /// Waits until a message was heard that contains `part`, which only one does.
    pub(crate) async fn until_heard(&self, part: &str, within: Duration) {
        self.until(part, within, |heard| heard.iter().rev().any(|one| one.text.contains(part))).await;
    }

    /// Waits for the first message from now on that contains `part`: for what comes again and again. What comes once
    /// may have come already.
    pub(crate) async fn until_new(&self, part: &str, within: Duration) {
        let so_far = self.tape.borrow().heard.len();
        self.until(part, within, |heard| heard[so_far.min(heard.len())..].iter().any(|one| one.text.contains(part)))
            .await;
    }

    /// Waits until the socket ends.
    pub(crate) async fn until_end(&self, within: Duration) -> End {
        let mut tape = self.tape.subscribe();
        let ended = timeout(within, tape.wait_for(|tape| tape.end.is_some())).await;
        let tape = ended.expect("the socket ends in time").expect("the sender lives as long as the recorder");
        tape.end.clone().expect("just waited for")
    }
}
