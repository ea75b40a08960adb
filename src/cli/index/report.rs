//! How the results of `refshim index` are printed.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::Timestamp;

use crate::index::Order;
use crate::index::maintenance::{CheckReport, DatabaseReport, Gap, Odd, Rebuilt};

pub(super) fn print_report(report: &CheckReport, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "journal: {} commits with {} records are intact", report.commits, report.records)?;
    report.gaps.iter().try_for_each(|gap| print_gap(gap, out))?;
    if let Some(torn) = &report.torn {
        let (path, offset) = (torn.path.display(), torn.offset);
        writeln!(
            out,
            "journal: {path} ends at byte {offset} in a write that a crash interrupted: no damage"
        )?;
    }
    match &report.sled {
        Ok((referrers, links)) => {
            writeln!(out, "snapshot and sled: {referrers} referrers with {links} links")?;
        }
        Err(why) => writeln!(out, "sled: {why}; it will be rebuilt at the next start")?,
    }
    if report.gaps.is_empty() {
        writeln!(out, "intact")
    } else {
        writeln!(
            out,
            "damaged: restore a backup (refshim index load), or keep what is intact (refshim index rebuild)"
        )
    }
}

pub(super) fn print_database_report(report: &DatabaseReport, out: &mut impl Write) -> io::Result<()> {
    let DatabaseReport { repositories, referrers, pending, links, odd, named } = report;
    for Odd { row, what } in named {
        writeln!(out, "{row}: {what}")?;
    }
    if let Some(more) = odd.checked_sub(named.len() as u64).filter(|more| *more > 0) {
        writeln!(out, "and {more} more")?;
    }
    writeln!(
        out,
        "{repositories} repositories, {referrers} referrers ({pending} pending) with {links} links"
    )?;
    if *odd == 0 {
        writeln!(out, "intact")
    } else {
        writeln!(out, "damaged: restore a backup of the database, or load a dump into an empty one")
    }
}

fn print_gap(gap: &Gap, out: &mut impl Write) -> io::Result<()> {
    let Gap { path, offset, bytes, what } = gap;
    writeln!(out, "journal: {} at byte {offset}, {bytes} bytes: {what}", path.display())
}

pub(super) fn print_rebuilt(rebuilt: &Rebuilt, out: &mut impl Write) -> io::Result<()> {
    if rebuilt.gaps.is_empty() {
        return writeln!(
            out,
            "the journal is intact, with {} referrers; sled will be rebuilt at the next start",
            rebuilt.referrers
        );
    }
    for (gap, (before, after)) in rebuilt.gaps.iter().zip(&rebuilt.between) {
        print_gap(gap, out)?;
        let (from, to) = (time(*before, "the beginning"), time(*after, "the end"));
        writeln!(out, "    links recorded between {from} and {to} may be missing")?;
    }
    writeln!(out, "{} referrers are kept", rebuilt.referrers)?;
    for (repository, count) in &rebuilt.doubted {
        writeln!(
            out,
            "{} (upstream {}): {count} referrers will be asked of the registry before they are listed",
            repository.name, repository.upstream
        )?;
    }
    let lost: BTreeMap<_, Vec<_>> =
        rebuilt.lost.iter().fold(BTreeMap::new(), |mut lost, (repository, digest)| {
            lost.entry(repository).or_insert_with(Vec::new).push(digest);
            lost
        });
    for (repository, digests) in lost {
        for digest in digests {
            writeln!(out, "{}@{digest}: its links are lost; pull or push it again", repository.name)?;
        }
    }
    writeln!(out, "what was pushed in the times above and is missing is learnt again when it is pulled")?;
    let aside = rebuilt.set_aside.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    writeln!(out, "the damaged journal is now {aside}")
}

/// The time at which a referrer was recorded, which its order is.
fn time(order: Option<Order>, otherwise: &str) -> String {
    let at = |order: Order| {
        let at = i64::try_from(order.0).ok().and_then(|at| Timestamp::from_microsecond(at).ok());
        at.unwrap_or(Timestamp::MAX).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    };
    order.map_or_else(|| otherwise.to_owned(), at)
}
