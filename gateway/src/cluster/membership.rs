//! Whether this node is a member, and of what: pure decisions.
//!
//! A beat prolongs a membership, and never revives one ([`Join::Stay`]): a node that was out must learn it. To get in
//! is a step of its own ([`Join::Enter`]), after which everything that others could not see meanwhile is to be told
//! again. A data set of another name has never heard of this node, even if it says otherwise (a restored backup may
//! contain it): that is being out, too. So is being answered by another process than before, which may have the data
//! but for what this node told last (a restart from a log written every second; a promoted replica).

use crate::backplane::{BeatReply, Join, Standing};

/// What the backplane still has of what this node told it, when the node enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// All: the node is new and has told nothing, or it was its lease alone that ran out. Counts of sockets may have been
    /// removed by whoever was let in meanwhile; everything else stands.
    All,
    /// All but perhaps the last: another process answers than before.
    Most,
    /// Nothing: it is another data set than before.
    Nothing,
}

/// What a beat brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The node is the member that it was.
    Same,
    /// The node is out: enter at once.
    Out,
    /// The node has just entered.
    Entered {
        /// What needs not be told again.
        kept: Kept,
    },
}

/// What is known of the own membership.
#[derive(Debug, Default)]
pub struct Membership {
    /// The data set that the node entered last.
    generation: Option<String>,
    /// The process that answered then.
    server: String,
    is_member: bool,
}

impl Membership {
    /// How to beat.
    #[must_use]
    pub fn join(&self) -> Join {
        if self.is_member { Join::Stay } else { Join::Enter }
    }

    /// Whether the node is a member, as far as it knows.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.is_member
    }

    /// The backplane said on another occasion that the node is no member.
    pub fn told_gone(&mut self) {
        self.is_member = false;
    }

    /// Takes the answer to a beat that was sent as [`Self::join`] says.
    pub fn heard(&mut self, reply: &BeatReply) -> News {
        let entering = !self.is_member;
        match reply.standing {
            Standing::Gone => {
                self.is_member = false;
                // An attempt to enter that fails is not repeated at once: that would be a hot loop.
                if entering { News::Same } else { News::Out }
            }
            Standing::Member if entering => {
                self.is_member = true;
                let kept = match &self.generation {
                    None => Kept::All,
                    Some(before) if *before != reply.generation => Kept::Nothing,
                    Some(_) if self.server != reply.server => Kept::Most,
                    Some(_) => Kept::All,
                };
                self.generation = Some(reply.generation.clone());
                self.server.clone_from(&reply.server);
                News::Entered { kept }
            }
            Standing::Member if self.generation.as_ref() == Some(&reply.generation) && self.server == reply.server => {
                News::Same
            }
            Standing::Member => {
                self.is_member = false;
                News::Out
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(standing: Standing, generation: &str) -> BeatReply {
        BeatReply { standing, generation: generation.into(), server: String::new(), members: 1, now: 0 }
    }

    /// What each beat is sent as and brings, in order.
    fn check(replies: &[(Standing, &str, Join, News)]) {
        let mut membership = Membership::default();
        for (standing, generation, join, news) in replies {
            assert_eq!(membership.join(), *join, "{replies:?}");
            assert_eq!(membership.heard(&reply(*standing, generation)), *news, "{replies:?}");
        }
    }

    const NEW: News = News::Entered { kept: Kept::All };
    const OTHER: News = News::Entered { kept: Kept::Nothing };

    #[test]
    fn enters_once_and_stays() {
        use Join::{Enter, Stay};
        use Standing::Member;
        check(&[(Member, "a", Enter, NEW), (Member, "a", Stay, News::Same), (Member, "a", Stay, News::Same)]);
    }

    #[test]
    fn enters_again_when_it_was_out() {
        use Join::{Enter, Stay};
        use Standing::{Gone, Member};
        check(&[(Member, "a", Enter, NEW), (Gone, "a", Stay, News::Out), (Member, "a", Enter, NEW)]);
        // The data are gone, and with them the membership.
        check(&[(Member, "a", Enter, NEW), (Gone, "b", Stay, News::Out), (Member, "b", Enter, OTHER)]);
        // A restored backup that contains this node.
        check(&[(Member, "a", Enter, NEW), (Member, "b", Stay, News::Out), (Member, "b", Enter, OTHER)]);
    }

    #[test]
    fn an_entering_that_fails_waits_for_the_next_beat() {
        use Join::Enter;
        use Standing::{Gone, Member};
        check(&[(Gone, "a", Enter, News::Same), (Gone, "a", Enter, News::Same), (Member, "a", Enter, NEW)]);
    }

    // Inv. CAP: a log written every second, or a replica, lacks what was told last.
    #[test]
    fn another_process_with_the_same_data_is_entered_anew() {
        let mut membership = Membership::default();
        let from = |server: &str| BeatReply { server: server.into(), ..reply(Standing::Member, "a") };
        let less = News::Entered { kept: Kept::Most };
        for (server, news) in [("x", NEW), ("x", News::Same), ("y", News::Out), ("y", less), ("y", News::Same)] {
            assert_eq!(membership.heard(&from(server)), news, "{server}");
        }
    }

    #[test]
    fn what_others_were_told_counts() {
        let mut membership = Membership::default();
        membership.heard(&reply(Standing::Member, "a"));
        membership.told_gone();
        assert_eq!(membership.join(), Join::Enter);
        assert_eq!(membership.heard(&reply(Standing::Member, "a")), NEW);
        // Both at once: the lease ran out while another process took over.
        membership.told_gone();
        let other = BeatReply { server: "y".into(), ..reply(Standing::Member, "a") };
        assert_eq!(membership.heard(&other), News::Entered { kept: Kept::Most });
    }
}
