-- Version 1. Leads each index with a hash or a digest: a key that grows with time would be one hot range in
-- CockroachDB and YugabyteDB. No sequences, no advisory locks, nothing else that one of the three lacks.

-- The repositories that anything was ever recorded of.
CREATE TABLE IF NOT EXISTS repository (
    -- The first 16 bytes of the SHA-256 of the upstream's number (4 bytes, big endian) and the name.
    repo bytea NOT NULL PRIMARY KEY,
    upstream bigint NOT NULL,
    name text NOT NULL,
    -- Raised by every deletion, so that a reading that began before it is recorded as pending.
    removals bigint NOT NULL DEFAULT 0,
    UNIQUE (upstream, name)
);

-- The referrers: the truth of each, and the row that its writers are serialized by.
CREATE TABLE IF NOT EXISTS referrer (
    repo bytea NOT NULL,
    -- A digest: a byte for its algorithm (1: sha256, 2: sha512), and its bytes.
    referrer bytea NOT NULL,
    -- When it was first recorded, in microseconds since 1970: its place among the referrers of each subject.
    pushed_us bigint NOT NULL,
    -- Raised by every change of this row. Begins with the version, so that a row that was removed and made anew is told
    -- from the one before.
    revision bigint NOT NULL,
    -- Changed by everything that is recorded of it.
    version bigint NOT NULL,
    -- Whether the registry has to be asked if it has the manifest.
    pending boolean NOT NULL,
    was_confirmed boolean NOT NULL,
    -- Whether the descriptor is another manifest's claim.
    claimed boolean NOT NULL,
    -- Since when the registry answers nothing but 404 for it.
    absent_us bigint,
    -- PUTs of it that are under way, until when they count, whether nothing but PUTs told of it, and whether it may
    -- have been deleted during one of them.
    puts integer NOT NULL,
    puts_until_us bigint NOT NULL,
    brought boolean NOT NULL,
    doubted boolean NOT NULL,
    -- What it refers to, and the kinds of these links, as bits.
    subjects bytea[] NOT NULL,
    kinds smallint[] NOT NULL,
    -- Its descriptor as JSON, where the links do not repeat it.
    descriptor text,
    PRIMARY KEY (repo, referrer)
);

-- The links, with all that a query answers, so that it is one scan of one index.
CREATE TABLE IF NOT EXISTS link (
    subject bytea NOT NULL,
    repo bytea NOT NULL,
    pushed_us bigint NOT NULL,
    referrer bytea NOT NULL,
    kinds smallint NOT NULL,
    pending boolean NOT NULL,
    was_confirmed boolean NOT NULL,
    version bigint NOT NULL,
    descriptor text,
    PRIMARY KEY (subject, repo, pushed_us)
);

-- How far the registry is known. The row without a name is of the whole upstream, and says since when it is recorded.
CREATE TABLE IF NOT EXISTS coverage (
    upstream bigint NOT NULL,
    name text NOT NULL,
    began_us bigint,
    backfilled_us bigint,
    swept_us bigint,
    notified_us bigint,
    PRIMARY KEY (upstream, name)
);

-- What one replica at a time does.
CREATE TABLE IF NOT EXISTS lease (
    name text NOT NULL PRIMARY KEY,
    holder text NOT NULL,
    until_us bigint NOT NULL
);

-- What replicas have taken to work off later: notifications, referrers tags to write. Each row is some events of one
-- queue, as lines of JSON, and is its holder's until a time; then any other replica takes it over.
CREATE TABLE IF NOT EXISTS queued (
    queue text NOT NULL,
    id text NOT NULL,
    holder text NOT NULL,
    until_us bigint NOT NULL,
    received_us bigint NOT NULL,
    events text NOT NULL,
    PRIMARY KEY (queue, id)
);
