//! What the gateway does with a viewer's messages: the rules of [`crate::session`], carried out and counted.

use std::sync::Arc;

use shared::close::CloseReason;

use super::{Handler, Message, PanicOn, Peer};
use crate::clock::Clock;
use crate::metrics::{Inbound, Metrics};
use crate::session::{ControlDecision, Decision, Heartbeat, NodeClock, Rules, Session};

/// The gateway's own [`Handler`].
#[derive(Debug)]
pub(super) struct Viewer {
    rules: Rules<NodeClock>,
    metrics: Arc<Metrics>,
    panic_on: Option<PanicOn>,
}

impl Viewer {
    pub(super) fn new(settings: &super::HubSettings, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let rules = Rules::new(settings.messages_per_second, settings.message_burst, NodeClock(clock));
        Self { rules, metrics, panic_on: settings.panic_on }
    }

    /// Fault injection for tests; release builds have none.
    fn maybe_panic(&self, text: &[u8]) {
        #[expect(clippy::panic, reason = "planted: tests want to see what survives it")]
        if cfg!(debug_assertions) && self.panic_on == Some(PanicOn::ClientMessage) && text == PanicOn::TEXT.as_bytes() {
            panic!("planted by a test");
        }
    }
}

impl Handler for Viewer {
    fn message(&self, peer: &Peer<'_>, session: &mut Session, message: Message<'_>) -> Result<(), CloseReason> {
        let Message::Text(text) = message else { return Err(CloseReason::Binary) };
        self.maybe_panic(text);
        let heartbeat = if peer.owes_pong() { Heartbeat::PingOpen } else { Heartbeat::Idle };
        match self.rules.text(session, text, heartbeat) {
            Decision::Pong => {
                self.metrics.inbound.inc(Inbound::Pong);
                peer.pong_came();
            }
            Decision::Unknown => self.metrics.inbound.inc(Inbound::Unknown),
            Decision::Dropped => self.metrics.inbound.inc(Inbound::OverRate),
            Decision::Close(reason) => {
                if reason == CloseReason::MessageRate {
                    self.metrics.inbound.inc(Inbound::OverRate);
                }
                return Err(reason);
            }
        }
        Ok(())
    }

    fn control(&self, session: &mut Session) -> ControlDecision {
        self.rules.control(session)
    }
}
