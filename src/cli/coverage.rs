//! `refshim coverage`: how far the registries are known.

use clap::Args;
use jiff::Timestamp;

use super::output::{print, print_json};
use super::reach::Reach;
use super::table::aligned;
use crate::client::Result;
use crate::jobs::{Known, UpstreamCoverage};

/// Tells how far refshim knows each repository.
///
/// That is: when a backfill or a sweep last read all of it, and when the registry last told of it. Lists of what is not
/// complete carry a Warning.
#[derive(Debug, Args)]
pub(super) struct Coverage {
    /// Only what is not complete.
    #[arg(long)]
    incomplete: bool,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    output: super::connection::Output,
}

impl Coverage {
    pub(super) async fn run(self) -> Result<()> {
        let mut all = self.reach.coverage().await?;
        if self.incomplete {
            for upstream in &mut all {
                upstream.repositories.retain(|_, known| !known.is_complete);
            }
            all.retain(|upstream| !upstream.whole.is_complete);
        }
        if self.output.json {
            return print_json(&all);
        }
        let rows: Vec<[String; 6]> = all.iter().flat_map(rows).collect();
        let head =
            ["UPSTREAM", "REPOSITORY", "COMPLETE", "BACKFILLED", "SWEPT", "NOTIFIED"].map(str::to_owned);
        for line in aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>()) {
            print(line.join("  ").trim_end())?;
        }
        Ok(())
    }
}

fn rows(of: &UpstreamCoverage) -> impl Iterator<Item = [String; 6]> {
    let whole = row(&of.upstream, "(all)", &of.whole);
    let repositories = of.repositories.iter().map(|(name, known)| row(&of.upstream, name.as_str(), known));
    std::iter::once(whole).chain(repositories.collect::<Vec<_>>())
}

fn row(upstream: &str, name: &str, known: &Known) -> [String; 6] {
    let time = |time: Option<Timestamp>| {
        time.map_or_else(|| "-".to_owned(), |time| time.strftime("%FT%TZ").to_string())
    };
    let complete = if known.is_complete { "yes" } else { "no" };
    [
        upstream.to_owned(),
        name.to_owned(),
        complete.to_owned(),
        time(known.backfilled),
        time(known.swept),
        time(known.notified),
    ]
}
