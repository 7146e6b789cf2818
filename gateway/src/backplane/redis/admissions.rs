//! Questions of handshakes, asked together, and those of a node that enters again.
//!
//! One question to Redis costs the node far more than its bytes: a system call to send, one to hear the answer, and
//! the wake-ups between. A single handshake cannot be cheaper; thousands that come at once can, because what has
//! gathered while one call is under way goes with the next, in one script. So there is at most one call at a time, and
//! between two departures lie [`GATHERED_FOR`] at least: a lone question goes at once, in a storm some dozens share a
//! call, and nobody waits longer than that and one round trip.
//!
//! Whoever gives up (a handshake waits 250 ms) drops its receiver; its question is still carried out, and what it
//! has counted is corrected by the node's next word about the address, as after any lost answer.
//!
//! A node that enters again asks about thousands of addresses. Those questions go by themselves, a call full of them at a
//! time ([`crate::cluster`] says how many calls, and how fast): between two of their calls the handshakes have theirs.
//!
//! Deliberately absent: answers that are remembered. Redis decides, each time.

use std::sync::{Arc, Weak};
use std::time::Duration;

use fred::types::Value;
use shared::ids::NodeId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::reply::{ODD_REPLY, Reply, corrupt};
use super::statements::Statement;
use super::{RedisBackplane, number, text};
use crate::backplane::{AddressHash, Admit, AdmitReply, BackplaneError, READMIT_ADDRESSES_MAX, Result};

/// Questions that may wait: as many as there may be connections that have not upgraded. The next is told
/// [`BackplaneError::Backpressure`].
// Inv. BOUND
const WAITING_MAX: usize = 4096;
/// Addresses that one script is asked about: some 0.5 ms of Redis's one thread.
const ASKED_TOGETHER_MAX: usize = READMIT_ADDRESSES_MAX;
/// Least time from one call to the next.
const GATHERED_FOR: Duration = Duration::from_millis(2);

/// The way in.
#[derive(Debug)]
pub(super) struct Admissions {
    waiting: mpsc::Sender<Question>,
}

/// The other end, for [`ask_all`].
pub(super) type Questions = mpsc::Receiver<Question>;

#[derive(Debug)]
pub(super) struct Question {
    admit: Admit,
    answer: oneshot::Sender<Result<AdmitReply>>,
}

impl Admissions {
    pub(super) fn channel() -> (Self, Questions) {
        let (waiting, questions) = mpsc::channel(WAITING_MAX);
        (Self { waiting }, questions)
    }

    pub(super) async fn ask(&self, admit: Admit) -> Result<AdmitReply> {
        let (answer, answered) = oneshot::channel();
        self.waiting.try_send(Question { admit, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => BackplaneError::Backpressure,
            mpsc::error::TrySendError::Closed(_) => BackplaneError::Unreachable,
        })?;
        // Dropped with the backplane.
        answered.await.unwrap_or(Err(BackplaneError::Unreachable))
    }
}

/// Asks what waits, call after call, until the backplane is gone.
pub(super) async fn ask_all(backplane: Weak<RedisBackplane>, mut questions: Questions) {
    let mut waiting = Vec::with_capacity(ASKED_TOGETHER_MAX);
    let mut departure = Instant::now();
    while questions.recv_many(&mut waiting, ASKED_TOGETHER_MAX).await > 0 {
        if departure > Instant::now() {
            tokio::time::sleep_until(departure).await;
            while waiting.len() < ASKED_TOGETHER_MAX
                && let Ok(question) = questions.try_recv()
            {
                waiting.push(question);
            }
        }
        departure = Instant::now() + GATHERED_FOR;
        let Some(backplane) = backplane.upgrade() else { return };
        backplane.ask_together(&mut waiting).await;
    }
}

impl RedisBackplane {
    async fn ask_together(self: Arc<Self>, waiting: &mut Vec<Question>) {
        let statement = self.statements.begin().await;
        // Who has given up meanwhile has counted itself as unsure already: nothing is lost by not asking.
        waiting.retain(|question| !question.answer.is_closed());
        if waiting.is_empty() {
            return;
        }
        let mut reply = self.ask_about(statement, waiting.iter().map(|question| &question.admit)).await;
        for question in waiting.drain(..) {
            let answer = match &mut reply {
                Ok(reply) => self.next_answer(reply),
                Err(error) => Err(error.clone()),
            };
            // An error here is a handshake that has given up.
            let _ = question.answer.send(answer);
        }
    }

    pub(super) async fn readmit_together(
        &self,
        node: NodeId,
        cap: u32,
        held: &[(AddressHash, u32)],
    ) -> Result<Vec<Result<AdmitReply>>> {
        let again =
            |(address, held): &(AddressHash, u32)| Admit { node, address: *address, held: *held, wanted: *held, cap };
        let asked: Vec<Admit> = held.iter().take(READMIT_ADDRESSES_MAX).map(again).collect();
        let mut reply = self.ask_about(self.statements.begin().await, asked.iter()).await?;
        Ok(asked.iter().map(|_| self.next_answer(&mut reply)).collect())
    }

    async fn ask_about<'q>(
        &self,
        statement: Statement<'_>,
        asked: impl ExactSizeIterator<Item = &'q Admit> + Clone,
    ) -> Result<Reply> {
        let mut keys = Vec::with_capacity(asked.len() + 2);
        keys.extend([self.keys.nodes(), self.keys.told()]);
        keys.extend(asked.clone().map(|admit| self.keys.address(admit.address)));
        let mut arguments = Vec::with_capacity(4 * asked.len() + 3);
        arguments.extend(statement.arguments());
        arguments.push(self.member_lease());
        arguments.extend(asked.flat_map(arguments_of));
        self.run(&self.scripts.admit, keys, arguments).await
    }

    fn next_answer(&self, reply: &mut Reply) -> Result<AdmitReply> {
        next_answer(reply).inspect_err(|error| {
            if let BackplaneError::Corrupt(reason) = error {
                self.refusals.mention(reason);
            }
        })
    }
}

fn arguments_of(admit: &Admit) -> [Value; 4] {
    [text(&admit.node), number(admit.held), number(admit.wanted), number(admit.cap)]
}

fn next_answer(reply: &mut Reply) -> Result<AdmitReply> {
    let (answer, counted) = (reply.text()?, reply.parse()?);
    match answer.as_str() {
        "granted" => Ok(AdmitReply::Granted),
        "refused" => Ok(AdmitReply::Refused { counted }),
        "gone" => Ok(AdmitReply::Gone),
        "corrupt" => Err(corrupt("ip")),
        _ => Err(ODD_REPLY),
    }
}
