//! A file of JSON Lines that a process is writing.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Long enough for a busy machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until the file has so many lines; all that it has. Each must be JSON and whole.
pub(crate) async fn json_lines(path: &Path, count: usize) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines: Vec<&str> = whole.lines().collect();
        if lines.len() >= count {
            return lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        assert!(began.elapsed() < LIMIT, "not {count} lines in {}: {text}", path.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
