//! `refshim index dump` and `load`, of an index in a database.

use std::io::{BufRead, Write};

use tokio_postgres::types::Type;

use super::IndexDatabase;
use super::writing::Batch;
use crate::index::local::maintenance::scratch::Scratch;
use crate::index::maintenance::dump::{DumpReader, DumpWriter};
use crate::index::maintenance::{Dumped, MaintenanceError};
use crate::index::postgres::statements::Sql;
use crate::index::record::{Record, Recorded, ReferrerKey};

/// Referrers that are read at once.
const PAGE: usize = 500;

/// A row if the index holds anything.
static ANYTHING: Sql = Sql { text: "SELECT 1 FROM referrer LIMIT 1", types: &[] };

/// Keeps others from loading at the same time: of two, the second waits here, and then finds something.
static HOLD: Sql =
    Sql { text: "SELECT version FROM schema_version WHERE version >= $1 FOR UPDATE", types: &[Type::INT8] };

impl IndexDatabase {
    /// Writes the index to `output`, as it is at this moment, whatever is written meanwhile.
    ///
    /// # Errors
    /// The database cannot be used, or the output takes no more. Then what was written has no end, and is not loaded.
    pub async fn dump(&self, output: impl Write) -> Result<Dumped, MaintenanceError> {
        let reading = self.read_consistently().await?;
        // Whoever loads it takes the highest order of the records.
        let mut lines = DumpWriter::begin(output, 0)?;
        for repository in reading.repositories().await? {
            let mut after = None;
            loop {
                let (page, more) = reading.page(&repository, after.as_ref(), PAGE).await?;
                for (digest, head) in page {
                    let key = ReferrerKey { repository: repository.clone(), digest: digest.clone() };
                    let recorded = Recorded { version: None, ..Recorded::of(key, head.state) };
                    lines.record(&Record::Recorded(recorded))?;
                    after = Some(digest);
                }
                if !more {
                    break;
                }
            }
        }
        lines.end()
    }

    /// Fills the database, which must have no index, with the output of a dump: with all of it, or with nothing.
    ///
    /// # Errors
    /// It has one already, the input is not a complete dump, or the database cannot be used.
    pub async fn load(&self, input: impl BufRead) -> Result<Dumped, MaintenanceError> {
        let session = self.known().await?;
        if session.row(&ANYTHING, &[]).await?.is_some() {
            return Err(MaintenanceError::OccupiedDatabase);
        }
        let mut dump = DumpReader::begin(input)?;
        let scratch = Scratch::of_records(|take| {
            while let Some(record) = dump.next()? {
                take(record)?;
            }
            Ok(())
        })?;
        // Reading the dump may have taken as long as a connection lives.
        let session = self.known().await?;
        let transaction = session.transaction().await?;
        session.row(&HOLD, &[&0_i64]).await?;
        if session.row(&ANYTHING, &[]).await?.is_some() {
            return Err(MaintenanceError::OccupiedDatabase);
        }
        for repository in scratch.repositories()? {
            let mut after = None;
            loop {
                let (page, more) = scratch.page(&repository, after.take(), PAGE)?;
                after = page.last().map(|(digest, _)| digest.clone());
                let mut batch = Batch::new(&repository);
                for (digest, state) in page {
                    if batch.is_full() {
                        batch.insert(&session).await?;
                    }
                    batch.add(&digest, &state);
                }
                batch.insert(&session).await?;
                if !more {
                    break;
                }
            }
        }
        transaction.commit().await?;
        Ok(Dumped { records: dump.records() })
    }
}
