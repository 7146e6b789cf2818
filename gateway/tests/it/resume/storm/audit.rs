//! Judges what one viewer heard against all that was published: pure, so that the judge itself can be tried.

use shared::ids::{EventId, StreamId};

/// What a viewer heard, in its order, over all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// A page, by its number.
    Page(usize, EventId),
    /// A number of visitors that has a place in the stream.
    Update(EventId),
    /// Something is missing after `from`, up to `to` or, without one, up to what comes next.
    Gap(Option<EventId>, Option<EventId>),
}

/// What was found to be right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Pages that came.
    pub(super) received: usize,
    /// Pages that did not come, and were announced.
    pub(super) announced: usize,
    /// Gaps.
    pub(super) gaps: usize,
    /// Gaps that had no end.
    pub(super) open: usize,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.received += other.received;
        self.announced += other.announced;
        self.gaps += other.gaps;
        self.open += other.open;
    }
}

/// The viewer, as far as it was followed.
struct Follower<'p> {
    published: &'p [EventId],
    /// Where it stands: what it had last, or the end of the last gap.
    at: Option<StreamId>,
    /// The page that should come next; none before anything came.
    next: Option<usize>,
    /// Gaps since something came.
    gaps: Vec<(StreamId, Option<StreamId>)>,
    tally: Tally,
}

/// Whether a viewer that heard this got everything that was published since the first that it got, once and in order,
/// but for exactly what it was told is missing. `published` says where each page stands.
///
/// # Errors
/// What is wrong.
pub(super) fn judge(published: &[EventId], heard: &[Heard]) -> Result<Tally, String> {
    let mut follower = Follower { published, at: None, next: None, gaps: Vec::new(), tally: Tally::default() };
    for (index, one) in heard.iter().enumerate() {
        let step = match *one {
            Heard::Page(page, id) => follower.page(page, id),
            Heard::Update(id) => follower.reach(id.stream),
            Heard::Gap(from, to) => follower.gap(from, to),
        };
        step.map_err(|error| format!("{error}; heard: {:#?}", &heard[index.saturating_sub(4)..=index]))?;
    }
    if follower.next != Some(published.len()) {
        return Err(format!("the end did not come, but {:?} of {}", follower.next, published.len()));
    }
    Ok(follower.tally)
}

impl Follower<'_> {
    fn page(&mut self, page: usize, id: EventId) -> Result<(), String> {
        if self.published.get(page) != Some(&id) {
            return Err(format!("page {page} was published as {:?}", self.published.get(page)));
        }
        self.reach(id.stream)?;
        if self.next != Some(page) {
            return Err(format!("page {page} instead of {:?}", self.next));
        }
        self.next = Some(page + 1);
        self.tally.received += 1;
        Ok(())
    }

    /// Something came that stands there: all before it came, or was announced; and nothing else was.
    // Inv. ORDER, Inv. GAP
    fn reach(&mut self, to: StreamId) -> Result<(), String> {
        if self.at.is_some_and(|at| to <= at) {
            return Err(format!("{to} comes behind {:?}", self.at));
        }
        let before = self.published.partition_point(|id| id.stream < to);
        for missing in self.next.unwrap_or(before)..before {
            let id = self.published[missing].stream;
            let said = self.gaps.iter().any(|(from, to)| *from < id && to.is_none_or(|to| id <= to));
            if !said {
                return Err(format!("page {missing} at {id} is missing unsaid; gaps: {:?}", self.gaps));
            }
            self.tally.announced += 1;
        }
        self.gaps.clear();
        (self.at, self.next) = (Some(to), Some(before.max(self.next.unwrap_or(0))));
        Ok(())
    }

    /// It begins behind all that came. That it ends before all that comes, is for those to find.
    // Inv. GAP
    fn gap(&mut self, from: Option<EventId>, to: Option<EventId>) -> Result<(), String> {
        let Some(from) = from.map(|from| from.stream) else { return Err("a gap without a beginning".to_owned()) };
        let to = to.map(|to| to.stream);
        if self.at.is_some_and(|at| from < at) {
            return Err(format!("a gap from {from}, which covers what came: the viewer is at {:?}", self.at));
        }
        if to.is_some_and(|to| to < from) {
            return Err("a gap that ends before it begins".to_owned());
        }
        self.at = to.max(self.at);
        self.gaps.push((from, to));
        self.tally.gaps += 1;
        self.tally.open += usize::from(to.is_none());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use shared::ids::EntryDigest;

    use super::*;

    /// Page 0 stands at 10, page 1 at 20, and so on; between them there may be updates.
    fn at(ms: u64) -> EventId {
        EventId { stream: StreamId { ms, seq: 0 }, digest: EntryDigest::of("t", b"") }
    }

    fn page(page: usize) -> Heard {
        Heard::Page(page, at(page as u64 * 10 + 10))
    }

    fn gap(from: u64, to: impl Into<Option<u64>>) -> Heard {
        Heard::Gap(Some(at(from)), to.into().map(at))
    }

    fn judged(heard: &[Heard]) -> Result<Tally, String> {
        let published: Vec<_> = (1..=6).map(|n| at(n * 10)).collect();
        judge(&published, heard)
    }

    #[test]
    fn what_is_right_is_counted() {
        let tally = |received, announced, gaps, open| Ok(Tally { received, announced, gaps, open });
        let all: Vec<_> = (0..6).map(page).collect();
        assert_eq!(judged(&all), tally(6, 0, 0, 0));
        assert_eq!(judged(&all[2..]), tally(4, 0, 0, 0), "it came later");
        assert_eq!(judged(&[Heard::Update(at(25)), page(2), page(3), page(4), page(5)]), tally(4, 0, 0, 0));
        assert_eq!(judged(&[page(0), gap(10, 40), page(4), page(5)]), tally(3, 3, 1, 0));
        assert_eq!(judged(&[page(0), gap(15, 45), page(4), page(5)]), tally(3, 3, 1, 0), "between updates");
        assert_eq!(judged(&[page(0), gap(10, None), page(4), page(5)]), tally(3, 3, 1, 1));
        assert_eq!(judged(&[page(0), gap(10, 30), gap(30, 40), page(4), page(5)]), tally(3, 3, 2, 0));
        assert_eq!(judged(&[page(0), gap(10, 40), Heard::Update(at(45)), page(4), page(5)]), tally(3, 3, 1, 0));
        let mut more = all.clone();
        more.insert(3, gap(30, None));
        assert_eq!(judged(&more), tally(6, 0, 1, 1), "too careful is not wrong");
    }

    #[test]
    fn what_is_wrong_is_found() {
        for (why, heard) in [
            ("lost", vec![page(0), page(1), page(3), page(4), page(5)]),
            ("lost before an update", vec![page(0), Heard::Update(at(25)), page(2), page(3), page(4), page(5)]),
            ("the end lost", vec![page(0), page(1), page(2), page(3), page(4)]),
            ("nothing came", vec![]),
            ("twice", vec![page(0), page(1), page(1), page(2), page(3), page(4), page(5)]),
            ("in another order", vec![page(0), page(2), page(1), page(3), page(4), page(5)]),
            ("foreign", vec![page(0), Heard::Page(1, at(21)), page(2), page(3), page(4), page(5)]),
            ("begins one too late", vec![page(0), gap(20, 40), page(4), page(5)]),
            ("begins one too early", vec![page(0), page(1), gap(10, 40), page(4), page(5)]),
            ("ends one too late", vec![page(0), gap(10, 50), page(4), page(5)]),
            ("ends one too early", vec![page(0), gap(10, 30), page(4), page(5)]),
            ("a hole between two gaps", vec![page(0), gap(10, 20), gap(30, 40), page(4), page(5)]),
            ("a gap after what follows it", vec![page(0), page(2), gap(10, 20), page(3), page(4), page(5)]),
            ("an old gap is not for ever", vec![page(0), gap(10, None), page(2), page(4), page(5)]),
            ("backwards", vec![page(0), gap(40, 10), page(4), page(5)]),
            ("no beginning", vec![page(0), Heard::Gap(None, Some(at(40))), page(4), page(5)]),
        ] {
            assert!(judged(&heard).is_err(), "{why}");
        }
    }
}
