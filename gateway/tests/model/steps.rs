//! What can happen next.

use std::convert::Infallible;

use gateway::backplane::TickReply;
use gateway::ticker::CALL_TIMEOUT;
use gateway::ticker::election::Action as Decision;
use rand::TryRng;
use shared::ids::Slot;
use shared::message::Snapshot;
use shared::time::Timestamp;
use stateright::{Model, Property};

use crate::laws;
use crate::redis::{Published, Redis, Verdict};
use crate::world::{Answer, Call, LEASE, Loss, Node, Params, Process, Progress, Request, STRAYS_MAX, Second, World};

/// The model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cluster(pub(crate) Params);

/// One step. Numbers are places of nodes, but for strays, where they count the strays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// A second goes by.
    Second,
    /// A node does what it is due to do, and has its answer within the second.
    Exchange(usize),
    /// A node does so while Redis is down.
    CallInVain(usize),
    /// A request that was late arrives and is carried out.
    Arrive(usize),
    /// The node reads the answer to it.
    Read(usize),
    /// The node waits no longer.
    GiveUp(usize),
    /// A request for which nobody waits arrives.
    StrayArrives(usize),
    /// It does not.
    StrayIsLost(usize),
    /// The process goes on.
    Resume(usize),
    /// A new process starts.
    Start(usize),
    /// Redis answers again.
    RedisReturns,
    /// Fault: a node does what it is due to do; whether and when it is carried out or answered is open.
    SendLate(usize),
    /// Fault: the process is stopped. What it has sent goes on its way.
    Pause(usize),
    /// Fault: the process is killed.
    Crash(usize),
    /// Fault, as it puts an end to a reign: the process gives its lease back and ends.
    Drain(usize),
    /// Fault: Redis stops, for a second at least, and forgets.
    RedisStops(Loss),
}

impl Model for Cluster {
    type State = World;
    type Action = Step;

    /// All start at once, and somebody's claim is the first to arrive: by symmetry, that of the node at place 0. What
    /// others do before that changes nothing for it, so it may as well come later.
    fn init_states(&self) -> Vec<World> {
        let after = |steps: &[Step]| {
            let mut world = World::begin(&self.0);
            steps.iter().try_for_each(|step| world.take(&self.0, *step)).map(|()| world)
        };
        let answered = after(&[Step::Exchange(0)]);
        let unanswered = after(&[Step::SendLate(0), Step::Arrive(0)]).filter(|_| self.0.faults > 0);
        answered.into_iter().chain(unanswered).collect()
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let mut due: Vec<usize> =
            world.up().filter(|(_, process)| is_due(world, process)).map(|(place, _)| place).collect();
        let idle = world.up().filter(|(_, process)| !process.paused && process.call.is_none()).count();
        let nobody_has_acted = due.len() == idle;
        if may_pass(&self.0, world, &due) {
            steps.push(Step::Second);
        }
        if !world.told_apart && due.ends_with(&[1, 2]) {
            // Whichever acts first, or has something happen to it, may as well be called 1.
            due.pop();
        }
        if let Some(place) = due.iter().find(|place| goes_first(&self.0, world, **place)) {
            steps.push(Step::Exchange(*place));
            return;
        }
        match world.down {
            None => steps.extend(due.iter().map(|place| Step::Exchange(*place))),
            // Nobody notices in which order.
            Some(_) => steps.extend(due.first().map(|place| Step::CallInVain(*place))),
        }
        under_way(world, steps);
        // Who has acted in this second acts next in the next one: until then it makes no difference whether it is
        // paused or down, so these begin before it acts, and end when nobody has.
        if nobody_has_acted || world.now >= self.0.trouble_ends {
            repairs(world, steps);
        }
        if world.faults_left > 0 && world.now < self.0.trouble_ends {
            faults(&self.0, world, &due, steps);
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(&self.0, step)?;
        next.told_apart |= tells_apart(world, &next, step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        laws::all()
    }
}

/// Whether after this step it matters which of the two challengers of the beginning is which: a fault has struck one of
/// them, one was given the lease, or Redis has changed what it says between answering one and the other.
fn tells_apart(before: &World, next: &World, step: Step) -> bool {
    let is = |place: usize, what: &dyn Fn(&Process) -> bool| before.up().any(|(at, it)| at == place && what(it));
    let alike = |what: &dyn Fn(&Process) -> bool| is(1, what) == is(2, what);
    let same_answers = alike(&|it| is_due(before, it)) && alike(&|it| it.call.is_some());
    match step {
        Step::SendLate(place) | Step::Pause(place) | Step::Crash(place) | Step::Drain(place) if place > 0 => true,
        Step::RedisStops(_) | Step::RedisReturns => !same_answers,
        _ => {
            let holder = next.redis.ticker.map(|held| held.lease.node);
            let holds = next.up().any(|(place, it)| place > 0 && Some(it.id) == holder);
            holds || (!same_answers && next.redis.last != before.redis.last)
        }
    }
}

/// Whether the node has something to do now.
fn is_due(world: &World, process: &Process) -> bool {
    let idle = !process.paused && process.call.is_none();
    idle && !matches!(process.election.clone().next(world.own_time()), Decision::Wait(_))
}

/// Whether the order does not matter in which this node, which is due, and others act: nothing goes wrong any more, and
/// what it asks for is a lease that another holds for longer than this second. It changes nothing then, and what it
/// learns is that there was a snapshot once. Of all orders one will do.
fn goes_first(params: &Params, world: &World, place: usize) -> bool {
    let Node::Up(process) = &world.nodes[place] else { return false };
    let now_ms = params.redis_ms(world.now);
    let refused = world.redis.ticker.is_some_and(|held| held.lease.node != process.id && held.until > now_ms);
    let safe = params.rules.claim_compares_node && world.redis.last.is_some();
    safe && refused && world.is_over(params) && process.election.lease(world.own_time()).is_none()
}

/// Whether time can go by: nobody is due, and when the trouble has to end, it has.
fn may_pass(params: &Params, world: &World, due: &[usize]) -> bool {
    let waits_too_long =
        |process: &Process| !process.paused && process.call.is_some_and(|call| has_timed_out(world.now, &call));
    let settled = world.now < params.trouble_ends || !world.is_repairable();
    world.now < params.ends()
        && !world.memory.healed
        && due.is_empty()
        && settled
        && !world.up().any(|(_, process)| waits_too_long(process))
}

fn has_timed_out(now: Second, call: &Call) -> bool {
    now - call.sent >= CALL_TIMEOUT.as_secs()
}

/// What becomes of requests and answers that were not taken within their second.
fn under_way(world: &World, steps: &mut Vec<Step>) {
    let answers = world.down.is_none();
    let mut in_vain = None;
    for (place, process) in world.up() {
        let Some(call) = process.call else { continue };
        let timed_out = !process.paused && has_timed_out(world.now, &call);
        match call.progress {
            Progress::Going if answers => steps.push(Step::Arrive(place)),
            Progress::Coming(_) if !process.paused => steps.push(Step::Read(place)),
            Progress::Lost if timed_out => in_vain = in_vain.or(Some(place)),
            _ => {}
        }
        if timed_out && call.progress != Progress::Lost {
            steps.push(Step::GiveUp(place));
        }
    }
    // Nobody notices in which order.
    steps.extend(in_vain.map(Step::GiveUp));
    if answers {
        steps.extend((0..world.strays.len()).map(Step::StrayArrives));
    }
}

/// How trouble ends.
fn repairs(world: &World, steps: &mut Vec<Step>) {
    for (place, node) in world.nodes.iter().enumerate() {
        match node {
            Node::Down { .. } => steps.push(Step::Start(place)),
            Node::Up(process) if process.paused => steps.push(Step::Resume(place)),
            Node::Up(_) => {}
        }
    }
    steps.extend((0..world.strays.len()).map(Step::StrayIsLost));
    if world.down.is_some_and(|(since, _)| world.now > since) {
        steps.push(Step::RedisReturns);
    }
}

fn faults(params: &Params, world: &World, due: &[usize], steps: &mut Vec<Step>) {
    if world.down.is_none() {
        steps.extend(due.iter().map(|place| Step::SendLate(*place)));
    }
    if world.down.is_none() && world.stops_left > 0 {
        let differs = |loss: &Loss| match loss {
            Loss::Nothing => true,
            Loss::LastSecond => world.synced != world.redis,
            Loss::Everything => world.redis != Redis::default(),
        };
        steps.extend(params.losses.iter().filter(|loss| differs(loss)).map(|loss| Step::RedisStops(*loss)));
    }
    for (place, process) in world.up() {
        if due.contains(&place) || process.call.is_some() {
            steps.push(Step::Crash(place));
            if !process.paused {
                steps.push(Step::Pause(place));
            }
            if !process.paused && process.election.lease(world.own_time()).is_some() {
                steps.push(Step::Drain(place));
            }
        }
    }
}

impl World {
    /// Does the step; None when there is nothing to do it with.
    fn take(&mut self, params: &Params, step: Step) -> Option<()> {
        match step {
            Step::Second => self.pass_second(params),
            Step::Exchange(place) => {
                let request = self.decide(place)?;
                let answer = self.carry_out(params, request);
                self.hear(params, place, request, self.now, Some(answer))?;
            }
            Step::CallInVain(place) => self.call(place, Progress::Lost)?,
            Step::SendLate(place) => {
                self.spend_fault();
                self.call(place, Progress::Going)?;
            }
            Step::Arrive(place) => {
                let request = self.process(place)?.call?.request;
                let answer = self.carry_out(params, request);
                self.process(place)?.call.as_mut()?.progress = Progress::Coming(answer);
            }
            Step::Read(place) => {
                let call = self.process(place)?.call.take()?;
                let Progress::Coming(answer) = call.progress else { return None };
                self.hear(params, place, call.request, call.sent, Some(answer))?;
            }
            Step::GiveUp(place) => {
                let call = self.process(place)?.call.take()?;
                self.abandon(Some(call));
                self.hear(params, place, call.request, call.sent, None)?;
            }
            Step::StrayArrives(stray) => {
                let request = self.strays.remove(stray);
                self.carry_out(params, request);
            }
            Step::StrayIsLost(stray) => {
                self.strays.remove(stray);
            }
            Step::Pause(place) => {
                self.spend_fault();
                self.process(place)?.paused = true;
            }
            Step::Resume(place) => self.process(place)?.paused = false,
            Step::Crash(place) => self.end(place)?,
            Step::Drain(place) => {
                let now = self.own_time();
                let lease = self.process(place)?.election.lease(now)?;
                self.end(place)?;
                self.stray(Request::Release(lease));
            }
            Step::Start(place) => {
                let Node::Down { lives } = self.nodes[place] else { return None };
                self.nodes[place] = Node::Up(Process::start(place, lives, params.interval));
            }
            Step::RedisStops(loss) => {
                self.spend_fault();
                self.stops_left -= 1;
                if loss != Loss::Nothing {
                    // Their connections break with the server that forgets. What a node still waits for may not have
                    // left it yet.
                    self.strays.clear();
                }
                self.down = Some((self.now, loss));
                self.redis = match loss {
                    Loss::Nothing => self.redis,
                    Loss::LastSecond => self.synced,
                    Loss::Everything => Redis::default(),
                };
            }
            Step::RedisReturns => {
                let (_, loss) = self.down.take()?;
                if loss != Loss::Nothing {
                    self.memory.forgot_at = Some(self.now);
                }
                if loss == Loss::Everything {
                    self.memory.emptied_at = Some(self.now);
                }
            }
        }
        Some(())
    }

    /// Nothing is wrong, and nothing will go wrong any more.
    pub(crate) fn is_over(&self, params: &Params) -> bool {
        (self.faults_left == 0 || self.now >= params.trouble_ends) && !self.is_troubled()
    }

    fn spend_fault(&mut self) {
        self.faults_left = self.faults_left.saturating_sub(1);
        self.memory.quiet = 0;
    }

    fn pass_second(&mut self, params: &Params) {
        self.now += 1;
        self.count_second(params);
        if params.losses.contains(&Loss::LastSecond) {
            self.synced = self.redis;
        }
    }

    /// What a node that is due asks for.
    fn decide(&mut self, place: usize) -> Option<Request> {
        let now = self.own_time();
        let process = self.process(place)?;
        match process.election.next(now) {
            Decision::Wait(_) => None,
            Decision::Claim => Some(Request::Claim(process.id)),
            Decision::Tick { lease, slot } => Some(Request::Tick(lease, slot)),
        }
    }

    fn call(&mut self, place: usize, progress: Progress) -> Option<()> {
        let request = self.decide(place)?;
        let sent = self.now;
        self.process(place)?.call = Some(Call { request, sent, progress });
        Some(())
    }

    /// The process is no more; what it had sent still goes on its way.
    fn end(&mut self, place: usize) -> Option<()> {
        self.spend_fault();
        let process = self.process(place)?;
        let (lives, call) = (process.lives + 1, process.call);
        self.nodes[place] = Node::Down { lives };
        self.abandon(call);
        Some(())
    }

    fn abandon(&mut self, call: Option<Call>) {
        if let Some(Call { request, progress: Progress::Going, .. }) = call {
            self.stray(request);
        }
    }

    fn stray(&mut self, request: Request) {
        if self.strays.len() < STRAYS_MAX {
            self.strays.push(request);
            // Their order means nothing.
            self.strays.sort_unstable_by_key(|request| match request {
                Request::Claim(node) => (0, *node, 0, 0),
                Request::Tick(lease, slot) => (1, lease.node, lease.epoch.0, slot.0),
                Request::Release(lease) => (2, lease.node, lease.epoch.0, 0),
            });
        }
    }

    /// The request reaches Redis.
    fn carry_out(&mut self, params: &Params, request: Request) -> Answer {
        let (rules, now_ms) = (params.rules, params.redis_ms(self.now));
        match request {
            Request::Claim(node) => {
                let lease_ms = LEASE.as_secs() * 1000;
                Answer::Claim(self.redis.claim(rules, node, lease_ms, now_ms))
            }
            Request::Release(lease) => {
                self.redis.release(rules, lease);
                Answer::Released
            }
            Request::Tick(lease, slot) => {
                let before = self.clone();
                let verdict = self.redis.tick(rules, lease, slot, params.interval_ms(), now_ms);
                if let Verdict::Published(reign) = verdict {
                    self.witness(params, &before, lease, Published { slot, epoch: reign.epoch });
                }
                Answer::Tick(verdict, now_ms)
            }
        }
    }

    /// The node hears the answer, or that there is none.
    fn hear(
        &mut self,
        params: &Params,
        place: usize,
        request: Request,
        sent: Second,
        answer: Option<Answer>,
    ) -> Option<()> {
        let (now, habits) = (self.own_time(), params.habits);
        let sent = if habits.believes_from_sending { std::time::Duration::from_secs(sent) } else { now };
        let process = self.process(place)?;
        match request {
            Request::Claim(_) => {
                let mut reply = match answer {
                    Some(Answer::Claim(reply)) => Some(reply),
                    _ => None,
                };
                process.knows_of_data |= reply.is_some_and(|reply| reply.last_slot != Slot(0));
                if let Some(reply) = reply.as_mut().filter(|reply| reply.last_slot == Slot(0))
                    && !habits.waits_after_loss
                {
                    reply.last_slot = Slot(1);
                }
                process.election.claimed(sent, now, reply, &mut Steady);
            }
            Request::Tick(_, slot) => {
                let reply = match answer {
                    Some(Answer::Tick(verdict, now_ms)) => Some(tick_reply(verdict, now_ms)),
                    _ => None,
                };
                process.knows_of_data |= matches!(reply, Some(TickReply::Published { .. }));
                process.election.ticked(sent, now, slot, reply, &mut Steady);
            }
            Request::Release(_) => {}
        }
        Some(())
    }
}

fn tick_reply(verdict: Verdict, now: u64) -> TickReply {
    match verdict {
        Verdict::Published(lease) => {
            let snapshot = Snapshot { active_visitors: 0, timestamp: Timestamp::from_unix_ms(now) };
            TickReply::Published { snapshot, lease, now }
        }
        Verdict::AlreadyDone => TickReply::AlreadyDone { now },
        Verdict::WrongSlot => TickReply::WrongSlot { now },
        Verdict::Fenced => TickReply::Fenced,
    }
}

/// Not random. The election asks for jitter on its polls, which here come in the next second with any jitter.
struct Steady;

impl TryRng for Steady {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::MAX / 3)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::MAX / 3)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill(0x55);
        Ok(())
    }
}
