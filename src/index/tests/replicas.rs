//! Several replicas on one database: what one does, the others see; and what one does not know, it does not undo.

use super::*;

/// This many replicas on one database.
async fn replicas<const N: usize>(bench: &Bench) -> [Index; N] {
    let mut all = Vec::new();
    for _ in 0..N {
        all.push(bench.open().await);
    }
    all.try_into().unwrap_or_else(|_| unreachable!())
}

#[tokio::test]
async fn what_one_records_the_others_list_at_once() {
    let bench = Bench::in_postgres();
    let [one, other] = replicas(&bench).await;
    put(&one, 10, &[1]).await;
    let pending = begin(&other, 11, &[1]).await;
    for index in [&one, &other] {
        assert_eq!(numbers(index, 1).await, [(10, false), (11, true)]);
    }
    pending.confirm().await.unwrap();
    let seen = version(&other, 10).await.unwrap();
    assert_eq!(remove(&other, 10, seen).await, Removed::Gone);
    for index in [&one, &other] {
        assert_eq!(numbers(index, 1).await, [(11, false)]);
    }
}

/// A PUT on one, a DELETE on another, a query that settles on a third.
#[tokio::test]
async fn a_decision_that_comes_too_late_is_noticed_whoever_made_it() {
    let bench = Bench::in_postgres();
    let [pushes, deletes, asks] = replicas(&bench).await;
    put(&pushes, 10, &[1]).await;
    let seen = version(&deletes, 10).await.unwrap();
    let again = begin(&pushes, 10, &[1]).await;
    let asked = version(&asks, 10).await.unwrap();
    assert_eq!(remove(&deletes, 10, seen).await, Removed::Doubted);
    settle(&asks, 10, &[1], asked).await;
    assert_eq!(numbers(&asks, 1).await, [(10, true)]);
    // Deleted while it was put: the registry may have taken it before.
    again.confirm().await.unwrap();
    assert_eq!(numbers(&asks, 1).await, [(10, true)]);
    settle(&asks, 10, &[1], version(&asks, 10).await.unwrap()).await;
    assert_eq!(numbers(&pushes, 1).await, [(10, false)]);
}

#[tokio::test]
async fn what_one_deletes_while_another_reads_is_pending() {
    let bench = Bench::in_postgres();
    let [reads, deletes] = replicas(&bench).await;
    let learn = async |read: &UpstreamRead, n: u32| {
        let observation = Observation { referrer: referrer(n, &[1]), claimed: false };
        reads.observe(read, vec![observation]).await.unwrap();
    };
    for n in [10, 20] {
        let read = reads.begin_read(repository("a")).await;
        put(&deletes, n, &[1]).await;
        let seen = version(&deletes, n).await.unwrap();
        assert_eq!(remove(&deletes, n, seen).await, Removed::Gone);
        learn(&read, n).await;
        // What was learnt with that read is no better, and with a new one it is.
        learn(&read, n + 1).await;
        learn(&reads.begin_read(repository("a")).await, n + 2).await;
    }
    let expected = [(10, true), (11, true), (12, false), (20, true), (21, true), (22, false)];
    assert_eq!(numbers(&deletes, 1).await, expected);
}

#[tokio::test]
async fn puts_of_one_referrer_through_several_replicas_take_away_only_what_they_brought() {
    let bench = Bench::in_postgres();
    let [one, other] = replicas(&bench).await;
    let (first, second) = (begin(&one, 10, &[1]).await, begin(&other, 10, &[1]).await);
    first.refuse().await.unwrap();
    assert_eq!(numbers(&one, 1).await, [(10, true)]);
    second.refuse().await.unwrap();
    assert_eq!(numbers(&one, 1).await, []);

    let (first, second) = (begin(&one, 11, &[2]).await, begin(&other, 11, &[2]).await);
    first.confirm().await.unwrap();
    second.refuse().await.unwrap();
    assert_eq!(numbers(&one, 2).await, [(11, false)]);
}

/// A replica that is killed reports no outcome, and nothing that it began is listed or forgotten for that.
#[tokio::test]
async fn a_put_of_a_replica_that_was_killed_is_asked_for() {
    let bench = Bench::in_postgres();
    let [killed, other] = replicas(&bench).await;
    std::mem::forget(begin(&killed, 10, &[1]).await);
    std::mem::forget(begin(&killed, 10, &[1]).await);
    // Another one puts it as well, and is refused: the one before may have been accepted.
    begin(&other, 10, &[1]).await.refuse().await.unwrap();
    assert_eq!(numbers(&other, 1).await, [(10, true)]);
    let seen = version(&other, 10).await.unwrap();
    assert_eq!(remove(&other, 10, seen).await, Removed::Doubted, "it may be under way");
    // Long after: what no replica ends does not count for ever.
    server_sql(&bench, "UPDATE referrer SET puts_until_us = 1");
    let again = begin(&other, 10, &[1]).await;
    again.refuse().await.unwrap();
    assert_eq!(numbers(&other, 1).await, [(10, true)]);
    let seen = version(&other, 10).await.unwrap();
    assert_eq!(remove(&other, 10, seen).await, Removed::Gone);
}

/// Orders are the place where a page ends: no two referrers of a subject have the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_replicas_record_the_same_and_other_things_at_once() {
    const PUTS: u32 = 40;
    let bench = Bench::in_postgres();
    let all: [Index; 4] = replicas(&bench).await;
    let writers = (0..16_u32).map(|writer| {
        let index = all[writer as usize % all.len()].clone();
        tokio::spawn(async move {
            for n in 0..PUTS {
                match writer % 4 {
                    // All of these the same.
                    0 => put(&index, 100 + n, &[1, 2]).await,
                    1 => {
                        let observation =
                            Observation { referrer: referrer(100 + n, &[1, 2]), claimed: false };
                        let read = index.begin_read(repository("a")).await;
                        index.observe(&read, vec![observation]).await.unwrap();
                    }
                    // Each its own.
                    _ => put(&index, 200 + writer * PUTS + n, &[1, 2, 3]).await,
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let listed = answers(&all[0], 1..4).await;
    for index in &all {
        assert_eq!(answers(index, 1..4).await, listed);
    }
    assert_eq!((listed[&1].len(), listed[&2].len(), listed[&3].len()), (360, 360, 320));
    for entries in listed.values() {
        assert!(entries.is_sorted_by(|(_, one, _), (_, next, _)| one < next));
        assert!(entries.iter().all(|(_, _, pending)| !pending));
    }
    assert_eq!(counts(&all[0]).await, (360, 40 * 2 + 320 * 3, 0));
    // The rows say the same: no link without its referrer, no referrer without its links.
    let odd = "SELECT count(*) FROM (SELECT repo, referrer, unnest(subjects) AS subject, pushed_us FROM referrer) AS r \
               FULL JOIN link AS l USING (repo, referrer, subject, pushed_us) WHERE r.repo IS NULL OR l.kinds IS NULL";
    assert_eq!(server_sql(&bench, odd).trim(), "0");
}

/// The order of a referrer may be another one's at a subject that it comes to refer to later.
#[tokio::test]
async fn a_place_that_is_taken_is_given_to_nobody_else() {
    let bench = Bench::in_postgres();
    let index = bench.open().await;
    put(&index, 10, &[1]).await;
    put(&index, 11, &[2]).await;
    let sql = "UPDATE referrer SET pushed_us = 5000000; UPDATE link SET pushed_us = 5000000";
    server_sql(&bench, sql);
    put(&index, 10, &[1, 2]).await;
    let orders: Vec<_> =
        entries(&index, 2).await.iter().map(|entry| (entry.digest.clone(), entry.order.0)).collect();
    assert_eq!(orders.len(), 2);
    assert_eq!(orders[0], (digest(11), 5_000_000));
    assert!(orders[1].0 == digest(10) && orders[1].1 > 5_000_000);
    assert_eq!(entries(&index, 1).await[0].order.0, orders[1].1);
    assert_eq!(counts(&index).await, (2, 3, 0));
}

#[tokio::test]
async fn a_lease_is_one_replicas_until_it_ends() {
    let bench = Bench::in_postgres();
    let [one, other] = replicas(&bench).await;
    let (of_one, of_other) = (one.lease("sweep".to_owned()), other.lease("sweep".to_owned()));
    assert!(of_one.take(Duration::from_secs(3600)).await.unwrap());
    assert!(!of_other.take(Duration::from_secs(3600)).await.unwrap());
    assert!(other.lease("another".to_owned()).take(Duration::from_secs(1)).await.unwrap());
    assert!(of_one.take(Duration::ZERO).await.unwrap(), "renewed, and over at once");
    while !of_other.take(Duration::from_secs(3600)).await.unwrap() {}
    assert!(!of_one.take(Duration::from_secs(3600)).await.unwrap());
    // Somebody else's cannot be given back.
    of_one.give_back().await.unwrap();
    assert!(!of_one.take(Duration::from_secs(3600)).await.unwrap());
    of_other.give_back().await.unwrap();
    assert!(of_one.take(Duration::from_secs(3600)).await.unwrap());
}

#[tokio::test]
async fn the_replicas_are_counted_while_they_run() {
    let bench = Bench::in_postgres();
    let [one, other] = replicas(&bench).await;
    while one.replicas().await != Some(2) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    other.close().await;
    assert_eq!(one.replicas().await, Some(1));
    // One that was killed says nothing more.
    server_sql(&bench, "INSERT INTO lease VALUES ('replica killed', 'killed', 1), ('sweep', 'x', 9e15)");
    assert_eq!(one.replicas().await, Some(1));
}

#[tokio::test]
async fn the_coverage_is_the_same_for_all() {
    let bench = Bench::in_postgres();
    let [one, other] = replicas(&bench).await;
    let name = repository("a").name;
    let backfilled =
        async |index: &Index| Covered { backfilled: Some(index.time().await.unwrap()), ..Covered::default() };
    one.cover(0, Some(&name), backfilled(&one).await).await.unwrap();
    assert_eq!(other.covered(0).await.unwrap(), None, "not recorded yet");
    one.begin_coverage(0);
    one.probe().await.unwrap();
    let began = other.covered(0).await.unwrap().unwrap().0;
    other.begin_coverage(0);
    other.probe().await.unwrap();
    assert_eq!(one.covered(0).await.unwrap().unwrap().0, began);
    let before = backfilled(&one).await;
    one.cover(0, Some(&name), before).await.unwrap();
    assert_eq!(other.coverage(&repository("a")).await, Ok(Coverage::Complete));
    assert_eq!(other.coverage(&repository("b")).await, Ok(Coverage::Since(began)));
    assert_eq!(other.coverage_of_all(0).await, Ok(Coverage::Since(began)));
    // Something was missed: what was read before does not count, whoever read it.
    other.restart_coverage(0).await;
    one.cover(0, Some(&name), before).await.unwrap();
    assert_ne!(other.coverage(&repository("a")).await, Ok(Coverage::Complete));
    one.cover(0, None, backfilled(&one).await).await.unwrap();
    // `other` remembers for some seconds what it was told.
    let [another] = replicas(&bench).await;
    assert_eq!(another.coverage(&repository("a")).await, Ok(Coverage::Complete));
    other.void_coverage(0);
    other.probe().await.unwrap();
    assert_eq!(one.covered(0).await.unwrap(), None);
}

#[tokio::test]
async fn what_a_lost_replica_was_to_do_is_taken_over_by_one_other() {
    let bench = Bench::in_postgres();
    let [lost, one, other] = replicas(&bench).await;
    let queue = |index: &Index| index.shared_queue("events").unwrap();
    let (of_lost, of_one, of_other) = (queue(&lost), queue(&one), queue(&other));
    let ids = [of_lost.add("\"a\"\n\"b\"").await.unwrap(), of_lost.add("\"c\"").await.unwrap()];
    of_lost.remove(&ids[1]).await.unwrap();
    let of_ones = [of_one.add("\"of one\"").await.unwrap()];
    assert_eq!(of_other.take(&[]).await.unwrap(), []);
    assert_eq!(one.shared_queue("others").unwrap().take(&[]).await.unwrap(), []);
    // Both renewed what they have; then one is lost.
    assert_eq!((of_lost.take(&ids).await.unwrap(), of_one.take(&of_ones).await.unwrap()), (vec![], vec![]));
    server_sql(&bench, &format!("UPDATE queued SET until_us = 1 WHERE id = '{}'", ids[0]));
    let (by_one, by_other) = tokio::join!(of_one.take(&of_ones), of_other.take(&[]));
    let (by_one, by_other) = (by_one.unwrap(), by_other.unwrap());
    assert_eq!(by_one.len() + by_other.len(), 1, "{by_one:?} {by_other:?}");
    let (heir, parcels) = if by_one.is_empty() { (of_other, by_other) } else { (of_one, by_one) };
    assert_eq!((&parcels[0].id, &*parcels[0].events), (&ids[0], "\"a\"\n\"b\""));
    // It comes back, and is not done with what is somebody else's now.
    of_lost.remove(&ids[0]).await.unwrap();
    let left = || server_sql(&bench, "SELECT count(*) FROM queued");
    assert_eq!(left().trim(), "2");
    heir.remove(&ids[0]).await.unwrap();
    assert_eq!(left().trim(), "1");
}

/// The registry processed the DELETE first and the PUT after it, and the answer of the DELETE comes last.
#[tokio::test]
async fn a_push_of_the_same_that_was_accepted_meanwhile_is_not_removed() {
    for bench in Bench::each() {
        let index = bench.open().await;
        put(&index, 10, &[1]).await;
        let again = begin(&index, 10, &[1]).await;
        let seen = index.version(&repository("a"), &digest(10)).await.unwrap().unwrap();
        again.confirm().await.unwrap();
        assert_eq!(remove(&index, 10, seen).await, Removed::Doubted);
        assert_eq!(numbers(&index, 1).await, [(10, true)]);
        // Without a PUT, it is gone.
        let seen = index.version(&repository("a"), &digest(10)).await.unwrap().unwrap();
        assert_eq!(remove(&index, 10, seen).await, Removed::Gone);
    }
}

#[tokio::test]
async fn what_was_seen_in_the_registry_is_not_taken_away_with_a_refused_put() {
    for bench in Bench::each() {
        let index = bench.open().await;
        let refused = begin(&index, 10, &[1]).await;
        let read = index.begin_read(repository("a")).await;
        // So that what is read is no better than what the PUT claims.
        assert_eq!(remove(&index, 11, Version::UNKNOWN).await, Removed::Unknown);
        let observation = Observation { referrer: referrer(10, &[1]), claimed: false };
        index.observe(&read, vec![observation]).await.unwrap();
        refused.refuse().await.unwrap();
        assert_eq!(numbers(&index, 1).await, [(10, true)]);
    }
}

#[tokio::test]
async fn what_only_a_tag_tells_of_is_pending_if_another_replica_deleted_it_meanwhile() {
    let bench = Bench::in_postgres();
    let [one, other] = replicas(&bench).await;
    let tagged = |n: u32| Referrer { links: vec![link(1, LinkKind::Cosign)], ..referrer(n, &[]) };
    let deleted = one.begin(repository("a"), tagged(10)).await.unwrap();
    assert_eq!(remove(&other, 10, Version::UNKNOWN).await, Removed::Unknown);
    deleted.confirm().await.unwrap();
    one.begin(repository("a"), tagged(11)).await.unwrap().confirm().await.unwrap();
    assert_eq!(numbers(&other, 1).await, [(10, true), (11, false)]);
}

/// A machine that is gone while its kernel, or a proxy before it, still accepts connections.
#[tokio::test]
async fn a_host_that_never_answers_is_in_nobodys_way() {
    let mut bench = Bench::in_postgres();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = bench.settings.database.as_ref().unwrap().url.config().clone();
    let (port, name) = (url.get_ports()[0], url.get_dbname().unwrap());
    let password = String::from_utf8(url.get_password().unwrap().to_vec()).unwrap();
    let both = format!(
        "postgres://{}:{password}@127.0.0.1:{},127.0.0.1:{port}/{name}?sslmode=disable",
        url.get_user().unwrap(),
        silent.local_addr().unwrap().port()
    );
    bench.settings.database = Some(bench::database(&both));
    let index = bench.open().await;
    put(&index, 10, &[1]).await;
    assert_eq!(numbers(&index, 1).await, [(10, false)]);
}
