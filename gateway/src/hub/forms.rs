//! What a broadcast pass brings, in the forms in which sockets want it.
//!
//! There are few: the sets of four kinds, with and without ids, and each of them with and without a ping behind it. Each
//! is encoded when the first socket asks for it, so a pass allocates per form and not per socket.
//!
//! A number may grow stale between the moment in which it was put into words and the one in which it is written, when
//! the process stands still in between. So whoever goes over the sockets says once in a while what time it is
//! ([`Forms::at`]), and forms that are not true any more are made anew.

use std::borrow::Cow;

use shared::ids::EventId;
use shared::message::{Freshness, MessageKind, MessageKinds, encode_ping, encode_update, with_id};
use shared::time::Timestamp;

use super::broadcast::Broadcast;
use super::outbox::Content;
use super::parcel::Parcel;
use super::pulse::Ride;
use super::{Ids, frame};
use crate::clock::Mono;

/// A broadcast pass.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) messages: &'a [Broadcast],
    /// As [`super::core::Core::begin_pass`] gave it.
    pub(super) number: u64,
    /// The last id of the passes before.
    pub(super) id_before: Option<EventId>,
    /// Pings may leave with the snapshot that it brings.
    pub(super) ride: Option<Ride>,
    /// The wall clock's time, for those pings.
    pub(super) wall: Timestamp,
}

/// The forms of a pass.
#[derive(Debug)]
pub(super) struct Forms<'a> {
    pass: &'a Pass<'a>,
    made: Vec<Form>,
    /// The time at which numbers are told.
    now: Mono,
    /// When the first of those that are fresh will be stale.
    true_until: Option<Mono>,
}

#[derive(Debug)]
struct Form {
    wants: (MessageKinds, Ids),
    parcel: Parcel,
    /// Pings may leave with it: it has a snapshot.
    ride: Option<Ride>,
    with_ping: Option<Parcel>,
}

impl<'a> Forms<'a> {
    pub(super) fn new(pass: &'a Pass<'a>, now: Mono) -> Self {
        let ends = pass.messages.iter().filter_map(|message| message.state).map(|state| state.fresh_until);
        Self { pass, made: Vec::new(), now, true_until: ends.filter(|end| now < *end).min() }
    }

    /// It is `now`, and not earlier than it was.
    pub(super) fn at(&mut self, now: Mono) {
        if self.true_until.is_some_and(|end| end <= now) {
            *self = Self::new(self.pass, now);
        }
    }

    pub(super) fn pass(&self) -> &'a Pass<'a> {
        self.pass
    }

    /// What a socket gets that wants to hear this; `rides` is asked whether a ping is to follow, where one may. None
    /// if there is nothing for it.
    pub(super) fn parcel(&mut self, wants: (MessageKinds, Ids), rides: impl FnOnce(Ride) -> bool) -> Option<&Parcel> {
        let form = match self.made.iter().position(|form| form.wants == wants) {
            Some(index) => &mut self.made[index],
            None => self.made.push_mut(Form::new(self.pass, wants, self.now)),
        };
        if form.parcel.marks.is_empty() {
            return None;
        }
        if !form.ride.is_some_and(rides) {
            return Some(&form.parcel);
        }
        let ping = || form.parcel.followed_by(&frame::text(&encode_ping(self.pass.wall)), Content::Ping);
        Some(form.with_ping.get_or_insert_with(ping))
    }
}

impl Form {
    fn new(pass: &Pass<'_>, wants: (MessageKinds, Ids), now: Mono) -> Self {
        let (kinds, ids) = wants;
        // Inv. WIRE: clients without ids do not know gaps.
        let known = |kind| kinds.contains(kind) && (kind != MessageKind::Gap || ids == Ids::With);
        let wanted = pass.messages.iter().filter(|message| known(message.kind));
        let parcel = Parcel::of_texts(wanted.map(|message| {
            let stale = message.state.filter(|state| state.freshness_at(now) == Freshness::Stale);
            let text = match stale {
                Some(state) => Cow::Owned(encode_update(state.snapshot, Freshness::Stale)),
                None => Cow::Borrowed(message.text.as_str()),
            };
            let text = match (ids, message.id) {
                (Ids::With, Some(id)) => Cow::Owned(with_id(&text, id)),
                _ => text,
            };
            let content = match message.kind {
                MessageKind::RealtimeUpdate => Content::State(message.id),
                _ => Content::Event(message.id),
            };
            (text, content)
        }));
        let brings_state = parcel.marks.iter().any(|mark| matches!(mark.content, Content::State(_)));
        Self { wants, parcel, ride: pass.ride.filter(|_| brings_state), with_ping: None }
    }
}

#[cfg(test)]
mod tests {
    use shared::message::Snapshot;

    use super::super::State;
    use super::*;

    fn message(kind: MessageKind) -> Broadcast {
        Broadcast { kind, text: "{}".to_owned(), id: None, state: None }
    }

    // The process was stopped in the middle of a pass: some sockets have the number as it was.
    #[test]
    fn a_number_that_turns_stale_during_a_pass_is_flagged_from_then_on() {
        let second = Mono::from_secs;
        let snapshot = Snapshot { active_visitors: 5, timestamp: Timestamp::from_unix_ms(0) };
        let messages = [(5, 9), (7, 11)].map(|(number, until)| {
            let snapshot = Snapshot { active_visitors: number, ..snapshot };
            let text = encode_update(snapshot, Freshness::Fresh);
            let state = Some(State { snapshot, fresh_until: second(until), id: None });
            Broadcast { kind: MessageKind::RealtimeUpdate, text, id: None, state }
        });
        let pass =
            Pass { messages: &messages, number: 1, id_before: None, ride: None, wall: Timestamp::from_unix_ms(0) };
        let mut forms = Forms::new(&pass, second(8));
        let mut flagged_at = |now| {
            forms.at(second(now));
            let parcel = forms.parcel((MessageKinds::ALL, Ids::Without), |_| false).expect("some");
            String::from_utf8_lossy(&parcel.bytes).matches(r#""stale":true"#).count()
        };
        assert_eq!([8, 9, 10, 11, 12].map(&mut flagged_at), [0, 1, 1, 2, 2]);
        // What is true is not put into words again for each look at the clock.
        let mut forms = Forms::new(&pass, second(8));
        forms.parcel((MessageKinds::ALL, Ids::Without), |_| false);
        forms.at(second(8));
        assert_eq!(forms.made.len(), 1);
    }

    // Inv. WIRE: a client that did not ask for ids knows no gap.
    #[test]
    fn gaps_go_to_clients_with_ids_alone() {
        let messages = [MessageKind::NewEvent, MessageKind::Gap, MessageKind::NewEvent].map(message);
        let pass =
            Pass { messages: &messages, number: 1, id_before: None, ride: None, wall: Timestamp::from_unix_ms(0) };
        let mut forms = Forms::new(&pass, Mono::ZERO);
        let mut count = |ids| forms.parcel((MessageKinds::ALL, ids), |_| false).expect("some").marks.len();
        assert_eq!((count(Ids::Without), count(Ids::With)), (2, 3));
    }
}
