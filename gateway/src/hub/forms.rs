//! What a broadcast pass brings, in the forms in which sockets want it.
//!
//! There are few: the sets of four kinds, with and without ids, and each of them with and without a ping behind it. Each
//! is encoded when the first socket asks for it, so a pass allocates per form and not per socket.

use std::borrow::Cow;

use shared::ids::EventId;
use shared::message::{MessageKind, MessageKinds, encode_ping, with_id};
use shared::time::Timestamp;

use super::broadcast::Broadcast;
use super::outbox::Content;
use super::parcel::Parcel;
use super::pulse::Ride;
use super::{Ids, frame};

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
    pub(super) fn new(pass: &'a Pass<'a>) -> Self {
        Self { pass, made: Vec::new() }
    }

    pub(super) fn pass(&self) -> &'a Pass<'a> {
        self.pass
    }

    /// What a socket gets that wants to hear this; `rides` is asked whether a ping is to follow, where one may. None
    /// if there is nothing for it.
    pub(super) fn parcel(&mut self, wants: (MessageKinds, Ids), rides: impl FnOnce(Ride) -> bool) -> Option<&Parcel> {
        let form = match self.made.iter().position(|form| form.wants == wants) {
            Some(index) => &mut self.made[index],
            None => self.made.push_mut(Form::new(self.pass, wants)),
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
    fn new(pass: &Pass<'_>, wants: (MessageKinds, Ids)) -> Self {
        let (kinds, ids) = wants;
        // Inv. WIRE: clients without ids do not know gaps.
        let known = |kind| kinds.contains(kind) && (kind != MessageKind::Gap || ids == Ids::With);
        let wanted = pass.messages.iter().filter(|message| known(message.kind));
        let parcel = Parcel::of_texts(wanted.map(|message| {
            let text = match (ids, message.id) {
                (Ids::With, Some(id)) => Cow::Owned(with_id(&message.text, id)),
                _ => Cow::Borrowed(message.text.as_str()),
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
    use super::*;

    fn message(kind: MessageKind) -> Broadcast {
        Broadcast { kind, text: "{}".to_owned(), id: None, state: None }
    }

    // Inv. WIRE: a client that did not ask for ids knows no gap.
    #[test]
    fn gaps_go_to_clients_with_ids_alone() {
        let messages = [MessageKind::NewEvent, MessageKind::Gap, MessageKind::NewEvent].map(message);
        let pass =
            Pass { messages: &messages, number: 1, id_before: None, ride: None, wall: Timestamp::from_unix_ms(0) };
        let mut forms = Forms::new(&pass);
        let mut count = |ids| forms.parcel((MessageKinds::ALL, ids), |_| false).expect("some").marks.len();
        assert_eq!((count(Ids::Without), count(Ids::With)), (2, 3));
    }
}
