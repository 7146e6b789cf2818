//! One server, and for each gateway a way to it that can be broken.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::sleep;

use super::single::Single;
use super::{Backend, Finder, Scene, Struck};
use crate::plan::Fault;
use crate::proxy::FaultProxy;

#[derive(Debug)]
pub(crate) struct Proxied {
    ways: Vec<FaultProxy>,
    server: Single,
}

impl Proxied {
    pub(crate) async fn start(gateways: usize) -> Self {
        let server = Single::start();
        let mut ways = Vec::new();
        for _ in 0..gateways {
            ways.push(FaultProxy::to(server.address()).await);
        }
        Self { ways, server }
    }

    /// That gateway's way.
    pub(crate) fn way(&self, gateway: usize) -> &FaultProxy {
        &self.ways[gateway]
    }
}

#[async_trait(?Send)]
impl Backend for Proxied {
    fn url(&self, gateway: usize) -> String {
        format!("redis://{}", self.ways[gateway].address)
    }

    fn finder(&self) -> Arc<Finder> {
        self.server.finder()
    }

    async fn strike(&mut self, fault: Fault, scene: &Scene<'_>) -> Struck {
        let Fault::PathBroken { breakage, lasts, .. } = fault else {
            return self.server.strike(fault, scene).await;
        };
        let ways: Vec<&FaultProxy> = scene.targets.iter().map(|target| &self.ways[*target]).collect();
        let before: Vec<u64> = ways.iter().map(|way| way.harm(breakage)).collect();
        let begun = scene.stage.now();
        for way in &ways {
            way.set(Some(breakage));
        }
        sleep(lasts).await;
        for way in &ways {
            way.set(None);
        }
        let good = scene.stage.now();
        let harm: Vec<u64> = ways.iter().zip(&before).map(|(way, before)| way.harm(breakage) - before).collect();
        let confirmed = if harm.contains(&0) { String::new() } else { format!("{} harmed: {harm:?}", ways.len()) };
        Struck { begun, takes_from: begun, good, confirmed }
    }

    async fn restore(&mut self) {
        self.server.restore().await;
    }
}
