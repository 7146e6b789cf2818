//! One server, `appendonly yes` and `appendfsync everysec`.
//!
//! kill -9 of the *process* loses next to nothing: what it wrote is the kernel's by then. What that policy may lose is
//! lost with the *machine*: up to a second of acknowledged writes. So the lab also cuts the power: the process is
//! killed and the file cut back to where it was some moments before.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{sleep, timeout};

use super::{Backend, Finder, LOOK_EVERY, Scene, Struck, freeze, kill, until};
use crate::evidence::Ms;
use crate::plan::Fault;
use crate::support::redis_server::RedisServer;
use crate::support::resp::Resp;

#[derive(Debug)]
pub(super) struct Single {
    redis: RedisServer,
    finder: Arc<Finder>,
}

impl Single {
    pub(super) fn start() -> Self {
        let redis = RedisServer::start();
        let finder = Arc::new(Finder::Fixed(redis.address()));
        Self { redis, finder }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.redis.address()
    }

    async fn flush(&self, scene: &Scene<'_>, ahead: Option<Duration>) -> Struck {
        scene.put_ahead(&self.finder, ahead).await;
        let mut resp = Resp::to(&self.redis).await;
        let before = resp.call(&["DBSIZE"]).await.number();
        let begun = scene.stage.now();
        resp.call(&["FLUSHALL"]).await;
        let lost = format!("{before} keys gone");
        Struck {
            begun,
            takes_from: begun,
            good: scene.stage.now(),
            confirmed: if before > 0 { lost } else { String::new() },
        }
    }

    async fn empty(&mut self, scene: &Scene<'_>, away: Duration, ahead: Option<Duration>) -> Struck {
        scene.put_ahead(&self.finder, ahead).await;
        let begun = scene.stage.now();
        let gone = kill(&mut self.redis);
        fs::remove_dir_all(self.append_only()).expect("its files are there");
        sleep(away).await;
        self.redis.restart();
        Struck { begun, takes_from: begun, good: scene.stage.now(), confirmed: format!("{gone}, its data removed") }
    }

    /// What is written while `while_lost` runs is lost.
    async fn cut_power(&mut self, scene: &Scene<'_>, away: Duration, while_lost: impl Future<Output = ()>) -> Struck {
        let takes_from = scene.stage.now();
        let (file, kept) = (self.newest_file(), self.newest_file_length());
        while_lost.await;
        let begun = scene.stage.now();
        let gone = kill(&mut self.redis);
        let lost = self.newest_file_length().saturating_sub(kept);
        OpenOptions::new().write(true).open(file).and_then(|file| file.set_len(kept)).expect("its file is there");
        sleep(away).await;
        self.redis.restart();
        let confirmed = format!("{gone}, {lost} bytes of its file with it");
        let confirmed = if lost > 0 { confirmed } else { String::new() };
        Struck { begun, takes_from, good: scene.stage.now(), confirmed }
    }

    /// Where it keeps its data.
    fn append_only(&self) -> PathBuf {
        self.redis.directory().join("appendonlydir")
    }

    fn newest_file(&self) -> PathBuf {
        let files = fs::read_dir(self.append_only()).expect("its files are there");
        let paths = files.filter_map(|file| file.ok().map(|file| file.path()));
        paths.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max().expect("it appends to a file")
    }

    fn newest_file_length(&self) -> Ms {
        fs::metadata(self.newest_file()).expect("it is there").len()
    }

    /// Waits until just before a slot begins.
    async fn until_slot_ends(scene: &Scene<'_>) {
        let interval = Ms::try_from(scene.interval.as_millis()).expect("short");
        let left = interval - scene.stage.now() % interval;
        sleep(Duration::from_millis(left.saturating_sub(30))).await;
    }

    /// Waits until somebody has seen the next snapshot.
    async fn until_tick(scene: &Scene<'_>) {
        let newest = || scene.stage.sights.lock().iter().filter_map(|sight| sight.counted).max();
        let before = newest();
        let ticked = async {
            while newest() <= before {
                sleep(LOOK_EVERY / 2).await;
            }
        };
        // It need not come: the fault before this one may have left its mark.
        let _ = timeout(scene.interval, ticked).await;
    }
}

#[async_trait(?Send)]
impl Backend for Single {
    fn url(&self, _: usize) -> String {
        self.redis.url()
    }

    fn finder(&self) -> Arc<Finder> {
        Arc::clone(&self.finder)
    }

    async fn strike(&mut self, fault: Fault, scene: &Scene<'_>) -> Struck {
        match fault {
            Fault::RedisKilled { away } => {
                let begun = scene.stage.now();
                let confirmed = kill(&mut self.redis);
                sleep(away).await;
                self.redis.restart();
                Struck { begun, takes_from: begun, good: scene.stage.now(), confirmed }
            }
            Fault::RedisFrozen { away } => {
                let begun = scene.stage.now();
                let confirmed = freeze(&self.redis).await;
                sleep(away).await;
                self.redis.thaw();
                Struck { begun, takes_from: begun, good: scene.stage.now(), confirmed }
            }
            Fault::RedisFlushed { ahead } => self.flush(scene, ahead).await,
            Fault::RedisEmptied { away, ahead } => self.empty(scene, away, ahead).await,
            Fault::PowerCut { lost, away, ahead } => {
                let finder = Arc::clone(&self.finder);
                self.cut_power(scene, away, async {
                    scene.put_ahead(&finder, ahead).await;
                    sleep(lost).await;
                })
                .await
            }
            Fault::PowerCutAfterTick => {
                Self::until_slot_ends(scene).await;
                self.cut_power(scene, Duration::ZERO, async {
                    Self::until_tick(scene).await;
                    scene.blow.notify_one();
                })
                .await
            }
            other => panic!("a single server cannot suffer {other:?}"),
        }
    }

    async fn restore(&mut self) {
        until("redis answers", async || super::info(self.redis.address(), "server").await).await;
    }
}
