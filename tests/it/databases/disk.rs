//! A disk that is full: a trigger says of what is inserted what PostgreSQL says then.

use reqwest::StatusCode;

use super::{BACK, GONE, created, refused, scene};

const NO_WRITES: &str = "the index takes no writes";

/// As PostgreSQL says it when a table cannot be extended. What is put into free space still succeeds.
const FULL: &str = "CREATE FUNCTION is_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$; \
    CREATE TRIGGER is_full BEFORE INSERT ON link FOR EACH ROW EXECUTE FUNCTION is_full();";

#[tokio::test]
async fn queries_go_on_while_the_disk_is_full() {
    let (postgres, scene) = scene().await;
    scene.client.push("a", &scene.referrer).await;
    postgres.psql(FULL);
    for one in 0..10 {
        refused(&scene.put(&one.to_string()).await.1);
        scene.lists(&[&scene.referrer]).await;
    }
    scene.passes("full").await;
    assert_eq!(
        scene.ready_with("index: the database takes no writes").await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let line = scene.refshim.logs(NO_WRITES, 1).await;
    assert!(line.contains("No space left") && line.contains("ERROR"), "{line}");
    scene.metric("refshim_index_ready 1").await;
    postgres.psql("DROP TRIGGER is_full ON link");
    scene.ready_with("index: ok").await;
    let (second, answer) = scene.put("second").await;
    created(&answer);
    scene.lists(&[&scene.referrer, &second]).await;
    let counts = [NO_WRITES, GONE, BACK].map(|part| scene.refshim.count(part));
    assert_eq!(counts, [1, 0, 1], "{}", scene.refshim.lines().join("\n"));
}
