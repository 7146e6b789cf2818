//! What a socket at rest takes in user space, itemised, as the allocator counts it (its size classes included).
//!
//! Each item is made [`SOCKETS`] times by itself, and then sockets are opened as the listener does. The first
//! [`PARTS`] items must explain what a socket took: what is left over is printed. Not in the sum is what belongs to an
//! address instead of a socket; here each socket has its own.

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll};

use gateway::admission::Admission;
use gateway::admission::bench::Book;
use gateway::hub::bench::{CONN_BYTES, Slots, TASK_BYTES};
use gateway::hub::{NewSocket, SocketPermit};
use gateway::identity::VisitorDigest;
use serde_json::{Map, json};
use tikv_jemalloc_ctl::{epoch, opt, stats};
use tokio_util::task::TaskTracker;

use super::sockets;

/// The word that asks for this instead of a case.
pub(crate) const NAME: &str = "idle-socket";
/// Has jemalloc do without thread caches.
const NO_THREAD_CACHE: &str = "_RJEM_MALLOC_CONF=tcache:false";
/// As many as a node is made for: hash tables grow by doubling, so an entry's share depends on it.
const SOCKETS: u32 = 10_000;
/// How many of the items a socket consists of.
const PARTS: usize = 5;
/// The name of the item that they explain.
const WHOLE: &str = "a socket, as the listener opens it";

/// Prints the table, and writes the numbers into `file`.
pub(crate) fn print(file: Option<&str>) {
    // What a thread's cache holds counts as allocated, and is enough to blur every line.
    assert!(!opt::tcache::read().expect("jemalloc"), "run with {NO_THREAD_CACHE}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let items = runtime.block_on(measure());
    for (name, bytes) in &items {
        println!("{bytes:>6}  {name}");
    }
    let parts: i64 = items[..PARTS].iter().map(|(_, bytes)| bytes).sum();
    let whole: i64 = items.iter().filter(|(name, _)| *name == WHOLE).map(|(_, bytes)| bytes).sum();
    println!("{:>6}  of that not explained by the first {PARTS}", whole - parts);
    if let Some(file) = file {
        let bytes: Map<_, _> = items.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.into())).collect();
        let results = json!({ "machine": std::env::consts::ARCH, "bytes": bytes });
        std::fs::write(file, format!("{results:#}\n")).expect("the results can be written");
    }
}

/// Names, and bytes per socket.
async fn measure() -> Vec<(&'static str, i64)> {
    let sink = sockets::sink();
    let (hub, metrics) = sockets::hub();
    let tasks = TaskTracker::new();
    let admission = sockets::admission(0);
    // As many tasks as there will be have been ready at once: the runtime's queue is as long as it gets.
    (0..2 * SOCKETS).for_each(|_| drop(tasks.spawn(async {})));
    while !tasks.is_empty() {
        tokio::task::yield_now().await;
    }
    let mut permits = Vec::with_capacity(SOCKETS as usize);
    for n in 0..SOCKETS {
        permits.push(admission.admit(sockets::ip(n)).await.expect("there is room"));
    }
    let mut streams: Vec<_> = Vec::with_capacity(SOCKETS as usize);
    let mut boxes: Vec<Box<dyn SocketPermit>> = Vec::with_capacity(SOCKETS as usize);

    let stream = per_socket(|| streams.extend((0..SOCKETS).map(|_| sockets::stream(&sink))));
    let permit = per_socket(|| boxes.extend(permits.drain(..).map(|permit| Box::new(permit) as Box<_>)));
    let conn = per_socket(|| many(|| _ = Box::leak(Box::new([0_u8; CONN_BYTES]))));
    let task = per_socket(|| many(|| drop(tasks.spawn(Asleep { _state: [0; TASK_BYTES / 8] }))));
    let slot = per_socket(|| Slots::fill(SOCKETS.into()));
    let opened = per_socket(|| {
        for (stream, permit) in streams.drain(..).zip(boxes.drain(..)) {
            hub.open(NewSocket { permit: Some(permit), ..sockets::viewer(stream) }, &tasks);
        }
    });
    // Less than nothing: what had to wait was written, and the outbox is gone.
    let settled = per_socket_of(sockets::settled(&metrics, SOCKETS.into())).await;
    vec![
        ("the registration with tokio", stream),
        ("the socket's own struct", conn),
        ("the task", task),
        ("the slot in the hub's map", slot),
        ("the permit", permit),
        (WHOLE, stream + permit + opened + settled),
        ("the count of its address, for the cap", per_socket(book)),
        ("the rate of its address' handshakes, until it has recovered", per_socket(|| rate(&admission))),
        ("the budget of names of its address, where it brings one", per_socket(|| names(&admission))),
    ]
}

fn book() -> Book {
    let mut book = Book::default();
    (0..SOCKETS).for_each(|n| assert!(book.come(sockets::address(n)), "there is room"));
    book
}

fn rate(admission: &Admission) {
    (0..SOCKETS).for_each(|n| admission.check_handshake_rate(sockets::ip(n)).expect("its first"));
}

fn names(admission: &Admission) {
    let visitor = VisitorDigest([1; 16]);
    (0..SOCKETS).for_each(|n| assert!(admission.new_visitor_allowed(sockets::address(n), &visitor), "its first"));
}

fn many(mut make: impl FnMut()) {
    (0..SOCKETS).for_each(|_| make());
}

/// By how much the allocated bytes grow while `make` runs, divided by [`SOCKETS`]. What it returns lives as long.
fn per_socket<T>(make: impl FnOnce() -> T) -> i64 {
    let before = allocated();
    let made = black_box(make());
    let after = allocated();
    drop(made);
    (after - before) / i64::from(SOCKETS)
}

async fn per_socket_of(event: impl Future<Output = ()>) -> i64 {
    let before = allocated();
    event.await;
    (allocated() - before) / i64::from(SOCKETS)
}

fn allocated() -> i64 {
    // The counters are as of the last epoch.
    epoch::advance().expect("jemalloc");
    stats::allocated::read().expect("jemalloc with statistics").try_into().expect("fits")
}

/// A task of the size of a socket's, which never ends.
struct Asleep {
    _state: [u64; TASK_BYTES / 8],
}

impl Future for Asleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}
