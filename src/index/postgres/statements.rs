//! The SQL, one statement an operation. Times are in microseconds since 1970, by the database's clock: those of the
//! replicas may differ.
//!
//! Every write of a referrer is one statement that changes its row in `referrer` on the condition of the revision that
//! was read, and its links only if that succeeded. So nothing is locked while refshim decides, and a statement that is
//! repeated because its answer was lost does no harm.

use tokio_postgres::types::Type;

/// A statement and the types of its parameters.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) text: &'static str,
    pub(super) types: &'static [Type],
}

/// Whether the schema is there and can be written, and what the database says of itself.
pub(super) static LOOK: Sql = Sql {
    text: "SELECT version, identity, current_setting('transaction_read_only') = 'on', \
           current_setting('synchronous_commit') = 'off', usable_from FROM schema_version",
    types: &[],
};

/// Does nothing, and fails if there is no right to one of the things that are done otherwise.
pub(super) const TRY_RIGHTS: &str = "\
    INSERT INTO repository SELECT * FROM repository WHERE false; UPDATE repository SET name = name WHERE false; \
    INSERT INTO referrer SELECT * FROM referrer WHERE false; UPDATE referrer SET puts = puts WHERE false; \
    DELETE FROM referrer WHERE false; \
    INSERT INTO link SELECT * FROM link WHERE false; UPDATE link SET kinds = kinds WHERE false; \
    DELETE FROM link WHERE false; \
    INSERT INTO coverage SELECT * FROM coverage WHERE false; UPDATE coverage SET name = name WHERE false; \
    DELETE FROM coverage WHERE false; \
    INSERT INTO lease SELECT * FROM lease WHERE false; UPDATE lease SET name = name WHERE false; \
    DELETE FROM lease WHERE false";

/// Adds a link that none is like.
pub(super) const TRY_LINK: &str = "\
    INSERT INTO link (subject, repo, pushed_us, referrer, kinds, pending, was_confirmed, version) \
    VALUES ('', '', 0, '', 0, true, false, 0)";

/// The version of the schema.
pub(super) static SCHEMA: Sql = Sql { text: "SELECT version FROM schema_version", types: &[] };

/// Begins a PUT of a referrer that is unknown or confirmed; no row if it is pending.
pub(super) static BEGIN: Sql = Sql {
    text: "WITH clock AS (SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint AS now), \
           place AS (INSERT INTO repository (repo, upstream, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING), \
           head AS (INSERT INTO referrer AS r (repo, referrer, pushed_us, revision, version, pending, was_confirmed, \
           claimed, puts, puts_until_us, brought, doubted, subjects, kinds, descriptor) \
           SELECT $1, $4, now, $5, $5, true, false, false, 1, now + $6, true, false, $7, $8, $9 FROM clock \
           ON CONFLICT (repo, referrer) DO UPDATE SET revision = r.revision + 1, \
           version = GREATEST(r.version + 1, excluded.version), brought = false, \
           puts = CASE WHEN r.puts_until_us < excluded.pushed_us THEN 1 ELSE r.puts + 1 END, \
           doubted = r.doubted AND r.puts > 0 AND r.puts_until_us >= excluded.pushed_us, \
           puts_until_us = excluded.puts_until_us WHERE NOT r.pending \
           RETURNING pushed_us, revision, version, pending, was_confirmed, claimed, absent_us, puts, puts_until_us, \
           brought, doubted, subjects, kinds), \
           made AS (INSERT INTO link (subject, repo, pushed_us, referrer, kinds, pending, was_confirmed, version, \
           descriptor) SELECT u.subject, $1, head.pushed_us, $4, u.kinds, true, false, head.version, $10 \
           FROM head, unnest($7, $8) AS u (subject, kinds) WHERE head.pending) \
           SELECT * FROM head",
    types: &[
        Type::BYTEA,
        Type::INT8,
        Type::TEXT,
        Type::BYTEA,
        Type::INT8,
        Type::INT8,
        Type::BYTEA_ARRAY,
        Type::INT2_ARRAY,
        Type::TEXT,
        Type::TEXT,
    ],
};

/// The state of a referrer, the time, and the deletions in its repository so far; a row even if it is unknown.
pub(super) static READ: Sql = Sql {
    text: "SELECT r.pushed_us, r.revision, r.version, r.pending, r.was_confirmed, r.claimed, r.absent_us, r.puts, \
           r.puts_until_us, r.brought, r.doubted, r.subjects, r.kinds, COALESCE(r.descriptor, (SELECT l.descriptor \
           FROM link AS l WHERE l.subject = r.subjects[1] AND l.repo = r.repo AND l.pushed_us = r.pushed_us)), \
           clock.now, (SELECT removals FROM repository WHERE repo = $1) \
           FROM (SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint AS now) AS clock \
           LEFT JOIN referrer AS r ON r.repo = $1 AND r.referrer = $2",
    types: &[Type::BYTEA, Type::BYTEA],
};

/// The states of several referrers of a repository.
pub(super) static READ_MANY: Sql = Sql {
    text: "SELECT r.pushed_us, r.revision, r.version, r.pending, r.was_confirmed, r.claimed, r.absent_us, r.puts, \
           r.puts_until_us, r.brought, r.doubted, r.subjects, r.kinds, COALESCE(r.descriptor, (SELECT l.descriptor \
           FROM link AS l WHERE l.subject = r.subjects[1] AND l.repo = r.repo AND l.pushed_us = r.pushed_us)), \
           r.referrer FROM referrer AS r WHERE r.repo = $1 AND r.referrer = ANY ($2)",
    types: &[Type::BYTEA, Type::BYTEA_ARRAY],
};

/// The version of a referrer, 0 while it is being PUT.
pub(super) static VERSION: Sql = Sql {
    text: "SELECT CASE WHEN puts > 0 \
           AND puts_until_us >= (extract(epoch FROM statement_timestamp()) * 1000000)::bigint \
           THEN 0 ELSE version END FROM referrer WHERE repo = $1 AND referrer = $2",
    types: &[Type::BYTEA, Type::BYTEA],
};

/// Adds a referrer with its links; no row if it is there already.
pub(super) static INSERT: Sql = Sql {
    text: "WITH place AS (INSERT INTO repository (repo, upstream, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING), \
           head AS (INSERT INTO referrer (repo, referrer, pushed_us, revision, version, pending, was_confirmed, \
           claimed, absent_us, puts, puts_until_us, brought, doubted, subjects, kinds, descriptor) \
           VALUES ($1, $4, $5, $6, $6, $7, $8, $9, $10, $11, $12, $13, false, $14, $15, $16) \
           ON CONFLICT DO NOTHING RETURNING pushed_us), \
           made AS (INSERT INTO link (subject, repo, pushed_us, referrer, kinds, pending, was_confirmed, version, \
           descriptor) SELECT u.subject, $1, head.pushed_us, $4, u.kinds, $7, $8, $6, $17 \
           FROM head, unnest($14, $15) AS u (subject, kinds)) \
           SELECT pushed_us FROM head",
    types: &[
        Type::BYTEA,
        Type::INT8,
        Type::TEXT,
        Type::BYTEA,
        Type::INT8,
        Type::INT8,
        Type::BOOL,
        Type::BOOL,
        Type::BOOL,
        Type::INT8,
        Type::INT4,
        Type::INT8,
        Type::BOOL,
        Type::BYTEA_ARRAY,
        Type::INT2_ARRAY,
        Type::TEXT,
        Type::TEXT,
    ],
};

/// Changes a referrer that is still of the revision `$3`, and its links, which are the same subjects as before; no row
/// if it is not.
pub(super) static CHANGE: Sql = Sql {
    text: "WITH head AS (UPDATE referrer SET revision = revision + 1, version = $4, pending = $5, was_confirmed = $6, \
           claimed = $7, absent_us = $8, puts = $9, puts_until_us = $10, brought = $11, doubted = $12, \
           subjects = $13, kinds = $14, descriptor = $15 \
           WHERE repo = $1 AND referrer = $2 AND revision = $3 RETURNING pushed_us, revision), \
           changed AS (UPDATE link SET kinds = u.kinds, pending = $5, was_confirmed = $6, version = $4, \
           descriptor = $16 FROM head, unnest($13, $14) AS u (subject, kinds) \
           WHERE link.subject = u.subject AND link.repo = $1 AND link.pushed_us = head.pushed_us) \
           SELECT revision FROM head",
    types: CHANGE_TYPES,
};

/// The same, with links that are added (`$17`, `$18`) and removed (`$19`).
pub(super) static REPLACE: Sql = Sql {
    text: "WITH head AS (UPDATE referrer SET revision = revision + 1, version = $4, pending = $5, was_confirmed = $6, \
           claimed = $7, absent_us = $8, puts = $9, puts_until_us = $10, brought = $11, doubted = $12, \
           subjects = $13, kinds = $14, descriptor = $15 \
           WHERE repo = $1 AND referrer = $2 AND revision = $3 RETURNING pushed_us, revision), \
           changed AS (UPDATE link SET kinds = u.kinds, pending = $5, was_confirmed = $6, version = $4, \
           descriptor = $16 FROM head, unnest($13, $14) AS u (subject, kinds) \
           WHERE link.subject = u.subject AND link.repo = $1 AND link.pushed_us = head.pushed_us), \
           added AS (INSERT INTO link (subject, repo, pushed_us, referrer, kinds, pending, was_confirmed, version, \
           descriptor) SELECT u.subject, $1, head.pushed_us, $2, u.kinds, $5, $6, $4, $16 \
           FROM head, unnest($17, $18) AS u (subject, kinds)), \
           gone AS (DELETE FROM link USING head, unnest($19) AS u (subject) \
           WHERE link.subject = u.subject AND link.repo = $1 AND link.pushed_us = head.pushed_us) \
           SELECT revision FROM head",
    types: CHANGE_TYPES_AND_LINKS,
};

/// All but the links that are added and removed.
const CHANGE_TYPES: &[Type] = CHANGE_TYPES_AND_LINKS.split_at(16).0;

const CHANGE_TYPES_AND_LINKS: &[Type] = &[
    Type::BYTEA,
    Type::BYTEA,
    Type::INT8,
    Type::INT8,
    Type::BOOL,
    Type::BOOL,
    Type::BOOL,
    Type::INT8,
    Type::INT4,
    Type::INT8,
    Type::BOOL,
    Type::BOOL,
    Type::BYTEA_ARRAY,
    Type::INT2_ARRAY,
    Type::TEXT,
    Type::TEXT,
    Type::BYTEA_ARRAY,
    Type::INT2_ARRAY,
    Type::BYTEA_ARRAY,
];

/// Changes only what is known of the PUTs of a referrer, if it is still of the revision `$3`; no row if it is not.
pub(super) static CHANGE_PUTS: Sql = Sql {
    text: "UPDATE referrer SET revision = revision + 1, puts = $4, puts_until_us = $5, brought = $6, doubted = $7 \
           WHERE repo = $1 AND referrer = $2 AND revision = $3 RETURNING revision",
    types: &[Type::BYTEA, Type::BYTEA, Type::INT8, Type::INT4, Type::INT8, Type::BOOL, Type::BOOL],
};

/// Removes a referrer that is still of the revision `$3`, with its links; no row if it is not.
pub(super) static REMOVE: Sql = Sql {
    text: "WITH head AS (DELETE FROM referrer WHERE repo = $1 AND referrer = $2 AND revision = $3 \
           RETURNING pushed_us, subjects), \
           gone AS (DELETE FROM link USING head, unnest(head.subjects) AS u (subject) \
           WHERE link.subject = u.subject AND link.repo = $1 AND link.pushed_us = head.pushed_us) \
           SELECT pushed_us FROM head",
    types: &[Type::BYTEA, Type::BYTEA, Type::INT8],
};

/// Notes that something may have been deleted from a repository.
pub(super) static NOTE_REMOVAL: Sql = Sql {
    text: "INSERT INTO repository AS r (repo, upstream, name, removals) VALUES ($1, $2, $3, 1) \
           ON CONFLICT (repo) DO UPDATE SET removals = r.removals + 1 RETURNING removals",
    types: &[Type::BYTEA, Type::INT8, Type::TEXT],
};

/// How often something may have been deleted from a repository.
pub(super) static REMOVALS: Sql =
    Sql { text: "SELECT removals FROM repository WHERE repo = $1", types: &[Type::BYTEA] };

/// The same, so that nothing can be deleted until the transaction ends; and the time. FOR SHARE would do, but those who
/// share overtake a deletion that waits, for as long as there are any.
pub(super) static HOLD_REMOVALS: Sql = Sql {
    text: "SELECT removals, (extract(epoch FROM statement_timestamp()) * 1000000)::bigint FROM repository \
           WHERE repo = $1 FOR UPDATE",
    types: &[Type::BYTEA],
};

/// Makes a repository known.
pub(super) static ADD_REPOSITORY: Sql = Sql {
    text: "INSERT INTO repository (repo, upstream, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    types: &[Type::BYTEA, Type::INT8, Type::TEXT],
};

/// Referrers of a subject, oldest first.
pub(super) static LIST: Sql = Sql {
    text: "SELECT pushed_us, referrer, kinds, pending, was_confirmed, version, descriptor FROM link \
           WHERE subject = $1 AND repo = $2 AND pushed_us > $3 ORDER BY pushed_us LIMIT $4",
    types: &[Type::BYTEA, Type::BYTEA, Type::INT8, Type::INT8],
};

/// The descriptor of a referrer whose links do not repeat it.
pub(super) static DESCRIPTOR: Sql = Sql {
    text: "SELECT descriptor FROM referrer WHERE repo = $1 AND referrer = $2",
    types: &[Type::BYTEA, Type::BYTEA],
};

/// The names of the repositories in which something refers to a subject. Jumps from one to the next in the index, so
/// that it costs as much as there are repositories, not links.
pub(super) static REPOSITORIES: Sql = Sql {
    text: "WITH RECURSIVE found (repo) AS ((SELECT repo FROM link WHERE subject = $2 ORDER BY repo LIMIT 1) \
           UNION ALL SELECT (SELECT l.repo FROM link AS l WHERE l.subject = $2 AND l.repo > found.repo \
           ORDER BY l.repo LIMIT 1) FROM found WHERE found.repo IS NOT NULL) \
           SELECT r.name FROM found JOIN repository AS r ON r.repo = found.repo WHERE r.upstream = $1",
    types: &[Type::INT8, Type::BYTEA],
};

/// Repositories of an upstream that have referrers, by name.
pub(super) static REFERRING_REPOSITORIES: Sql = Sql {
    text: "SELECT r.name FROM repository AS r WHERE r.upstream = $1 AND r.name > $2 \
           AND EXISTS (SELECT 1 FROM referrer AS f WHERE f.repo = r.repo) ORDER BY r.name LIMIT $3",
    types: &[Type::INT8, Type::TEXT, Type::INT8],
};

/// Referrers of a repository, by digest.
pub(super) static WALK: Sql = Sql {
    text: "SELECT r.pushed_us, r.revision, r.version, r.pending, r.was_confirmed, r.claimed, r.absent_us, r.puts, \
           r.puts_until_us, r.brought, r.doubted, r.subjects, r.kinds, CASE WHEN r.descriptor IS NULL \
           THEN (SELECT l.descriptor FROM link AS l WHERE l.subject = r.subjects[1] AND l.repo = r.repo \
           AND l.pushed_us = r.pushed_us) END, r.referrer FROM referrer AS r WHERE r.repo = $1 AND r.referrer > $2 \
           ORDER BY r.referrer LIMIT $3",
    types: &[Type::BYTEA, Type::BYTEA, Type::INT8],
};

/// How many referrers a repository has, counted up to a limit.
pub(super) static COUNT: Sql = Sql {
    text: "SELECT count(*) FROM (SELECT 1 FROM referrer WHERE repo = $1 LIMIT $2) AS found",
    types: &[Type::BYTEA, Type::INT8],
};
