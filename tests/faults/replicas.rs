//! Three replicas on one PostgreSQL behind HAProxy under mixed load. Replicas are killed and started again, the
//! database too, and connections to it are cut. Only what was under way then may fail; no answer may be wrong, and what
//! was acknowledged is on the next list of every replica.

mod outages;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use tempfile::TempDir;
use tokio::task::{JoinSet, block_in_place};

use self::outages::{GRACE, Outages, Part};
use self::worker::{Found, Worker};
use crate::it::support::Balancer;
use crate::it::support::postgres::{Port, Postgres};
use crate::random::Random;
use crate::support::{Client, Refshim, Registry, by_environment};
use crate::table::Row;

const REPLICAS: usize = 3;
const WORKERS: u64 = 8;
/// The longest that the database is away, in milliseconds.
const AWAY: u64 = 1500;
/// Long enough for a busy machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// The replicas and what they stand on.
struct Scene {
    registry: Registry,
    postgres: Postgres,
    ports: [(Port, Port); REPLICAS],
    replicas: [Option<Refshim>; REPLICAS],
    directory: TempDir,
    outages: Arc<Outages<REPLICAS>>,
    row: Row,
    faults: Faults,
}

/// How often each was done.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    replicas: u64,
    database: u64,
    cut: u64,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self {
            registry: Registry::start(),
            postgres: Postgres::start(),
            ports: std::array::from_fn(|_| (Port::reserve(), Port::reserve())),
            replicas: [const { None }; REPLICAS],
            directory: tempfile::tempdir().unwrap(),
            outages: Arc::new(Outages::new()),
            row: Row::new("replicas and their database are killed under mixed load"),
            faults: Faults::default(),
        };
        (0..REPLICAS).for_each(|n| scene.launch(n));
        scene
    }

    fn launch(&mut self, n: usize) {
        let (port, admin) = &self.ports[n];
        let url = self.postgres.url();
        let start = Refshim::prepare(self.registry.address, self.directory.path())
            .at(port.number(), admin.number())
            .with("INDEX_URL", &url)
            .with("INDEX_MIGRATE", "true")
            .with("LOG_FILTER", "warn,refshim::cli=info");
        self.replicas[n] = Some(block_in_place(|| start.launch_unready()));
    }

    async fn kill(&mut self, n: usize) {
        let replica = self.replicas[n].take().unwrap();
        let admin = Client::new(replica.admin);
        let is_up = admin.try_send(admin.request(Method::GET, "/healthz")).await.is_ok();
        self.row.ended += u64::from(!is_up);
        if replica.logged("panicked") {
            self.row.mistake(replica.lines().join("\n"));
        }
        replica.kill();
        self.faults.replicas += 1;
    }

    /// Waits until all replicas say that they are ready.
    async fn ready(&self) {
        let began = Instant::now();
        for replica in self.replicas.iter().flatten() {
            let admin = Client::new(replica.admin);
            while admin.get("/readyz").await.status != StatusCode::OK {
                assert!(began.elapsed() < LIMIT, "not ready: {}", replica.lines().join("\n"));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn kill_replica(&mut self, random: &mut Random) {
        let n = random.place(REPLICAS - 1);
        self.outages.begin(Part::Replica(n));
        self.kill(n).await;
        tokio::time::sleep(Duration::from_millis(random.below(500))).await;
        self.launch(n);
        self.ready().await;
        self.outages.end(Part::Replica(n));
    }

    /// And a replica with it, every other time, which then starts without a database.
    async fn kill_database(&mut self, random: &mut Random) {
        let too = random.coin().then(|| random.place(REPLICAS - 1));
        self.outages.begin(Part::Database);
        too.inspect(|n| self.outages.begin(Part::Replica(*n)));
        block_in_place(|| self.postgres.kill9());
        self.faults.database += 1;
        tokio::time::sleep(Duration::from_millis(random.below(AWAY))).await;
        if let Some(n) = too {
            self.kill(n).await;
            self.launch(n);
        }
        block_in_place(|| self.postgres.start_again());
        self.ready().await;
        too.inspect(|n| self.outages.end(Part::Replica(*n)));
        self.outages.end(Part::Database);
    }

    async fn cut_connections(&mut self) {
        self.outages.begin(Part::Database);
        block_in_place(|| self.postgres.cut_connections());
        self.faults.cut += 1;
        self.ready().await;
        self.outages.end(Part::Database);
    }

    /// Breaks one after the other; the database as often as this.
    async fn break_all(&mut self, until: Instant, database_each: Duration) {
        let mut random = Random::new(by_environment("FAULT_SEED", 1));
        let mut last_database = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(500 + random.below(2000))).await;
            if Instant::now() >= until {
                return;
            }
            self.row.tried += 1;
            if last_database.elapsed() >= database_each {
                self.kill_database(&mut random).await;
                last_database = Instant::now();
            } else if random.below(5) == 0 {
                self.cut_connections().await;
            } else {
                self.kill_replica(&mut random).await;
            }
        }
    }

    /// Clients in repositories of their own, through the balancer and to each replica.
    async fn workers(&self, balancer: &Balancer) -> Vec<Worker> {
        let mut workers = Vec::new();
        for n in 0..WORKERS {
            let direct =
                self.ports.each_ref().map(|(port, _)| Client::new(([127, 0, 0, 1], port.number()).into()));
            let clients = (Client::new(balancer.address), direct);
            let seed = by_environment("FAULT_SEED", 1) + n;
            let (registry, outages) = (self.registry.client(), Arc::clone(&self.outages));
            workers.push(Worker::start(format!("w{n}"), clients, registry, seed, outages).await);
        }
        workers
    }

    fn close(mut self, workers: Vec<Worker>) {
        let mut all = Found::default();
        for Worker { found, .. } in workers {
            all.requests += found.requests;
            all.excused += found.excused;
            all.deleted += found.deleted;
            all.refused += found.refused;
            all.races += found.races;
            all.lists += found.lists;
            self.row.acknowledged += found.acknowledged;
            found.lost.into_iter().for_each(|finding| self.row.lose(finding));
            found.wrong.into_iter().for_each(|finding| self.row.mistake(finding));
        }
        let (Found { requests, excused, deleted, refused, races, lists, .. }, faults) = (all, self.faults);
        println!(
            "{faults:?}; {requests} requests, {excused} of them failed by a fault; {lists} lists were right"
        );
        println!("{deleted} deletes, {refused} refused pushes, {races} pushes and deletes at the same time");
        for replica in self.replicas.into_iter().flatten() {
            if !replica.stop().success() {
                self.row.ended += 1;
            }
        }
        self.row.close();
    }
}

/// `FAULT_REPLICAS` is for how many seconds.
#[tokio::test(flavor = "multi_thread")]
async fn every_replica_lists_what_any_of_them_acknowledged_whatever_is_killed() {
    let mut scene = Scene::new();
    scene.ready().await;
    let balancer =
        Balancer::before(&scene.ports.each_ref().map(|(port, admin)| (port.number(), admin.number())));
    let workers = scene.workers(&balancer).await;
    let seconds = by_environment("FAULT_REPLICAS", 25);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut load: JoinSet<Worker> = workers.into_iter().map(|worker| worker.work(until)).collect();
    scene.break_all(until, Duration::from_secs((seconds / 4).min(60))).await;
    let mut workers = Vec::new();
    while let Some(worker) = load.join_next().await {
        workers.push(worker.unwrap());
    }
    // From now on nothing may fail.
    tokio::time::sleep(GRACE).await;
    for worker in &mut workers {
        worker.finish().await;
    }
    scene.close(workers);
}
