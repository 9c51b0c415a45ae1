-- The spool, version 1.
--
-- Tables may change under a migration; the views of 0002_views are the public interface. Every
-- table is STRICT. Times are integer milliseconds, UTC. A recipient waits (due_ms), is in the
-- hands of a lane (lane), is held, or is final (finished_ms): the CHECKs allow nothing else, so no
-- row can be stuck.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value ANY
) STRICT, WITHOUT ROWID;

CREATE TABLE message (
  seq             INTEGER PRIMARY KEY AUTOINCREMENT,
  id              TEXT NOT NULL UNIQUE,
  sender          TEXT NOT NULL,
  subject         TEXT NOT NULL,
  size            INTEGER NOT NULL CHECK (size >= 0),
  content         INTEGER,           -- staged content (negative); NULL: content is at seq
  chunks          INTEGER NOT NULL CHECK (chunks BETWEEN 1 AND 4096),
  stream          TEXT NOT NULL,
  priority        INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 2),
  message_id      TEXT NOT NULL,     -- RFC 5322 Message-ID
  idempotency_key TEXT,
  metadata        TEXT NOT NULL CHECK (json_valid(metadata)),
  on_doubt        TEXT CHECK (on_doubt IN ('retry', 'hold')),
  require_tls     INTEGER NOT NULL CHECK (require_tls IN (0, 1)),
  eightbit        INTEGER NOT NULL CHECK (eightbit IN (0, 1)),
  smtputf8        INTEGER NOT NULL CHECK (smtputf8 IN (0, 1)),
  created_ms      INTEGER NOT NULL,
  send_ms         INTEGER NOT NULL,  -- later than created_ms only where the user said so
  expires_ms      INTEGER NOT NULL,
  finished_ms     INTEGER,
  purged_ms       INTEGER            -- content deleted by retention
) STRICT;

CREATE INDEX message_expiry ON message (expires_ms) WHERE finished_ms IS NULL;
-- Two indexes, so that retention never walks over what it has dealt with.
CREATE INDEX message_body ON message (finished_ms)
  WHERE finished_ms IS NOT NULL AND purged_ms IS NULL;
CREATE INDEX message_purged ON message (finished_ms)
  WHERE finished_ms IS NOT NULL AND purged_ms IS NOT NULL;

-- Content in chunks of at most 256 KiB: key = content id * 4096 + number. Each chunk carries its
-- own digest (BLAKE2b-16), so that damage is seen before a byte of it is on the wire.
CREATE TABLE content (
  key    INTEGER PRIMARY KEY,
  data   BLOB NOT NULL CHECK (length(data) <= 262144),
  digest BLOB NOT NULL CHECK (length(digest) = 16)
) STRICT;

-- Content of a large message arrives in several short transactions before its message row; what is
-- never claimed by a message is purged after a day.
CREATE TABLE staged (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE tag (
  message INTEGER NOT NULL,
  tag     TEXT NOT NULL,
  PRIMARY KEY (tag, message)
) STRICT, WITHOUT ROWID;

CREATE INDEX tag_message ON tag (message);

CREATE TABLE idempotency (
  key        TEXT PRIMARY KEY,
  hash       BLOB NOT NULL,
  id         TEXT NOT NULL,
  expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_expiry ON idempotency (expires_ms);

-- A site: the set of hosts that serve a domain; one row for all domains with that set.
-- AUTOINCREMENT: a purged site's number must not come to mean another one.
CREATE TABLE site (
  seq                INTEGER PRIMARY KEY AUTOINCREMENT,
  key                TEXT NOT NULL UNIQUE,
  provider           TEXT,
  hosts              TEXT NOT NULL CHECK (json_valid(hosts)),  -- [[preference, name, port], ...]
  next_due_ms        INTEGER NOT NULL,
  suspended_until_ms INTEGER NOT NULL DEFAULT 0,
  suspended_by       TEXT,
  suspended_reason   TEXT,
  last_reply         TEXT,
  failures           INTEGER NOT NULL DEFAULT 0,
  last_success_ms    INTEGER NOT NULL DEFAULT 0,
  pipelining         TEXT NOT NULL DEFAULT 'full'
                     CHECK (pipelining IN ('full', 'transaction', 'none')),
  lane_cap           INTEGER CHECK (lane_cap >= 1),  -- what the hosts were seen to bear
  cap_ms             INTEGER NOT NULL DEFAULT 0,  -- when the cap may grow by one
  paused_ms          INTEGER NOT NULL DEFAULT 0,  -- a look found only what others must do first
  used_ms            INTEGER NOT NULL DEFAULT 0,  -- when a domain last led or ceased to lead here
  ready_ms           INTEGER GENERATED ALWAYS AS
                     (max(next_due_ms, suspended_until_ms, paused_ms)) VIRTUAL
) STRICT;

CREATE INDEX site_ready ON site (ready_ms);
CREATE INDEX site_capped ON site (cap_ms) WHERE lane_cap IS NOT NULL;
CREATE INDEX site_used ON site (used_ms);

-- The shared MX cache. due_ms is set while recipients of the domain wait for a route, or for a route
-- that expired to be looked up again; router is the worker that looks it up now. A temporary answer
-- leaves site, generation and usable_ms as the last real answer made them.
CREATE TABLE domain (
  name        TEXT PRIMARY KEY,
  result      TEXT CHECK (result IN ('mx', 'implicit', 'literal', 'relay', 'null_mx',
                                     'no_domain', 'loop', 'temporary')),
  site        INTEGER,
  generation  INTEGER NOT NULL DEFAULT 0,
  hosts       TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(hosts)),
  resolved_ms INTEGER,
  expires_ms  INTEGER NOT NULL DEFAULT 0,
  usable_ms   INTEGER NOT NULL DEFAULT 0,  -- stamps of this generation are good until then
  error       TEXT,
  failures    INTEGER NOT NULL DEFAULT 0,
  due_ms      INTEGER,
  retry_ms    INTEGER NOT NULL DEFAULT 0,
  router      INTEGER,
  ready_ms    INTEGER GENERATED ALWAYS AS (max(due_ms, retry_ms)) VIRTUAL
) STRICT, WITHOUT ROWID;

CREATE INDEX domain_ready ON domain (ready_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX domain_router ON domain (router) WHERE router IS NOT NULL;
CREATE INDEX domain_site ON domain (site) WHERE site IS NOT NULL;
CREATE INDEX domain_resolved ON domain (resolved_ms) WHERE due_ms IS NULL;

CREATE TABLE recipient (
  seq           INTEGER PRIMARY KEY AUTOINCREMENT,
  message       INTEGER NOT NULL,
  address       TEXT NOT NULL,
  domain        TEXT NOT NULL,
  checksum      INTEGER NOT NULL,    -- CRC-32 of message id, sender and address
  priority      INTEGER NOT NULL,
  state         TEXT NOT NULL CHECK (state IN ('queued', 'claimed', 'sending', 'deferred', 'held',
                                               'delivered', 'failed', 'cancelled')),
  reason        TEXT,
  site          INTEGER,
  generation    INTEGER NOT NULL DEFAULT 0,
  due_ms        INTEGER,
  lane          INTEGER,
  session       TEXT,
  opened_ms     INTEGER,
  attempts      INTEGER NOT NULL DEFAULT 0,
  deferrals     INTEGER NOT NULL DEFAULT 0,
  in_doubt      INTEGER NOT NULL DEFAULT 0 CHECK (in_doubt IN (0, 1)),
  doubts        INTEGER NOT NULL DEFAULT 0,  -- lost on the wire so often since the last reply
  reopened_ms   INTEGER,
  last_ms       INTEGER,
  finished_ms   INTEGER,
  mx            TEXT,
  reply_code    INTEGER,
  enhanced_code TEXT,
  reply_text    TEXT,
  tls           TEXT,
  UNIQUE (message, address),
  CHECK ((state IN ('queued', 'deferred')) = (due_ms IS NOT NULL)),
  CHECK ((state IN ('claimed', 'sending')) = (lane IS NOT NULL)),
  CHECK ((state IN ('delivered', 'failed', 'cancelled')) = (finished_ms IS NOT NULL)),
  CHECK (state NOT IN ('failed', 'held') OR reason IS NOT NULL)
) STRICT;

CREATE INDEX recipient_due ON recipient (site, priority, due_ms)
  WHERE due_ms IS NOT NULL AND site IS NOT NULL;
CREATE INDEX recipient_unrouted ON recipient (domain, due_ms)
  WHERE due_ms IS NOT NULL AND site IS NULL;
CREATE INDEX recipient_lane ON recipient (lane) WHERE lane IS NOT NULL;

-- A lane is a leased right to hold one connection to a site. AUTOINCREMENT: a token is never
-- given out twice, so a late worker cannot be mistaken for a new one.
CREATE TABLE lane (
  token     INTEGER PRIMARY KEY AUTOINCREMENT,
  site      INTEGER NOT NULL,
  worker    INTEGER NOT NULL,
  leased_ms INTEGER NOT NULL,
  claims    INTEGER NOT NULL DEFAULT 0  -- whose turn it is among priorities
) STRICT;

CREATE INDEX lane_site ON lane (site, worker);
CREATE INDEX lane_worker ON lane (worker);

CREATE TABLE worker (
  seq          INTEGER PRIMARY KEY AUTOINCREMENT,
  kind         TEXT NOT NULL,
  pid          INTEGER NOT NULL,
  host         TEXT NOT NULL,
  boot         TEXT NOT NULL,
  lock         TEXT NOT NULL,     -- file held locked while it lives, in the run directory
  state        TEXT NOT NULL CHECK (state IN ('starting', 'ready', 'draining', 'stopped', 'lost')),
  started_ms   INTEGER NOT NULL,
  heartbeat_ms INTEGER NOT NULL,
  sessions     INTEGER NOT NULL DEFAULT 0,
  restarts     INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX worker_live ON worker (kind) WHERE state IN ('starting', 'ready', 'draining');

CREATE TABLE session (
  id           TEXT PRIMARY KEY,
  worker       INTEGER NOT NULL,
  site         INTEGER NOT NULL,
  host         TEXT NOT NULL,
  address      TEXT NOT NULL,
  source       TEXT,
  started_ms   INTEGER NOT NULL,
  ended_ms     INTEGER,
  messages     INTEGER NOT NULL DEFAULT 0,
  ehlo         TEXT,
  tls_wanted   TEXT NOT NULL,
  tls_reached  TEXT NOT NULL,
  tls_version  TEXT,
  tls_cipher   TEXT,
  tls_peer     TEXT,
  tls_verified INTEGER NOT NULL CHECK (tls_verified IN (0, 1)),
  end_cause    TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX session_worker ON session (worker) WHERE ended_ms IS NULL;
CREATE INDEX session_started ON session (started_ms);

CREATE TABLE attempt (
  seq           INTEGER PRIMARY KEY AUTOINCREMENT,
  message       INTEGER NOT NULL,
  recipient     INTEGER NOT NULL,
  number        INTEGER NOT NULL,
  session       TEXT,
  worker        INTEGER,
  started_ms    INTEGER NOT NULL,
  ended_ms      INTEGER NOT NULL,
  stage         TEXT NOT NULL CHECK (stage IN ('route', 'connect', 'greeting', 'ehlo', 'starttls',
                                               'auth', 'mail', 'rcpt', 'data', 'body', 'dot')),
  host          TEXT,
  address       TEXT,
  reply_code    INTEGER,
  enhanced_code TEXT,
  reply_text    TEXT,
  verdict       TEXT NOT NULL CHECK (verdict IN ('delivered', 'deferred', 'failed', 'held')),
  reason        TEXT,
  in_doubt      INTEGER NOT NULL CHECK (in_doubt IN (0, 1)),
  late          INTEGER NOT NULL DEFAULT 0 CHECK (late IN (0, 1))
) STRICT;

CREATE INDEX attempt_message ON attempt (message);

CREATE TABLE event (
  id        INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms     INTEGER NOT NULL,
  type      TEXT NOT NULL,
  message   INTEGER,
  recipient INTEGER,
  detail    TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(detail))
) STRICT;

CREATE INDEX event_message ON event (message) WHERE message IS NOT NULL;

CREATE TABLE hour_stat (
  hour_ms    INTEGER NOT NULL,
  stream     TEXT NOT NULL,
  domain     TEXT NOT NULL,
  status     TEXT NOT NULL,
  reason     TEXT NOT NULL,
  recipients INTEGER NOT NULL,
  bytes      INTEGER NOT NULL,
  ms_sum     INTEGER NOT NULL,
  PRIMARY KEY (hour_ms, stream, domain, status, reason)
) STRICT, WITHOUT ROWID;

CREATE TABLE suppression (
  address    TEXT NOT NULL,
  scope      TEXT NOT NULL,
  reason     TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  expires_ms INTEGER,
  evidence   TEXT,
  PRIMARY KEY (address, scope)
) STRICT, WITHOUT ROWID;

-- One row: what the clocks said at the last look, and the newest message there was then: its times
-- and those of all older ones are told by the clock of that look.
CREATE TABLE clock (
  one          INTEGER PRIMARY KEY CHECK (one = 1),
  wall_ms      INTEGER NOT NULL,
  monotonic_ms INTEGER NOT NULL,
  boot         TEXT NOT NULL,
  last         INTEGER NOT NULL
) STRICT;

-- Jumps are shifted into unfinished messages piece by piece; nothing expires while one is missing.
-- A jump concerns what the old clock stamped: messages up to known, and of the newer ones those that
-- created_ms tells.
CREATE TABLE clock_jump (
  seq       INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms     INTEGER NOT NULL,        -- the new clock when the jump was seen
  old_ms    INTEGER NOT NULL,        -- what the old clock would have said then
  amount_ms INTEGER NOT NULL,
  grace_ms  INTEGER NOT NULL,        -- after a boot: late messages live until this time
  known     INTEGER NOT NULL,        -- newest message at the look before
  last      INTEGER NOT NULL,        -- newest message at this look
  done      INTEGER NOT NULL DEFAULT 0  -- messages up to here are shifted
) STRICT;

CREATE INDEX clock_jump_pending ON clock_jump (seq) WHERE done < last;

-- How clients enqueue: one INSERT, one step of SQLite, so that an application busy with threads
-- never holds the write lock between two statements. recipients: [[address, domain, checksum]...].
CREATE VIEW enqueue AS
SELECT NULL AS id, NULL AS sender, NULL AS subject, NULL AS size, NULL AS content, NULL AS chunks,
       NULL AS body, NULL AS digest, NULL AS stream, NULL AS priority, NULL AS message_id,
       NULL AS idempotency_key, NULL AS idempotency_hash,
       NULL AS metadata, NULL AS tags, NULL AS on_doubt, NULL AS require_tls, NULL AS eightbit,
       NULL AS smtputf8, NULL AS created_ms, NULL AS send_ms, NULL AS expires_ms,
       NULL AS recipients
 WHERE 0;

CREATE TRIGGER enqueue_insert INSTEAD OF INSERT ON enqueue
BEGIN
  SELECT RAISE(ABORT, 'idempotency key in use')
    FROM idempotency
   WHERE key = NEW.idempotency_key AND expires_ms > NEW.created_ms;
  DELETE FROM idempotency WHERE key = NEW.idempotency_key;
  INSERT INTO idempotency (key, hash, id, expires_ms)
  SELECT NEW.idempotency_key, NEW.idempotency_hash, NEW.id,
         NEW.created_ms + coalesce((SELECT CAST(value AS INTEGER) FROM meta
                                     WHERE key = 'idempotency_window_ms'), 86400000)
   WHERE NEW.idempotency_key IS NOT NULL;

  INSERT INTO message (id, sender, subject, size, content, chunks, stream, priority, message_id,
                       idempotency_key, metadata, on_doubt, require_tls, eightbit, smtputf8,
                       created_ms, send_ms, expires_ms)
  VALUES (NEW.id, NEW.sender, NEW.subject, NEW.size, NEW.content, NEW.chunks, NEW.stream,
          NEW.priority, NEW.message_id, NEW.idempotency_key, NEW.metadata, NEW.on_doubt,
          NEW.require_tls, NEW.eightbit, NEW.smtputf8, NEW.created_ms, NEW.send_ms,
          coalesce(NEW.expires_ms,
                   NEW.send_ms + coalesce((SELECT CAST(value AS INTEGER) FROM meta
                                            WHERE key = 'max_age_ms'), 432000000)));

  INSERT INTO content (key, data, digest)
  SELECT seq * 4096, NEW.body, NEW.digest
    FROM message WHERE id = NEW.id AND NEW.content IS NULL;
  DELETE FROM staged WHERE seq = -NEW.content;

  INSERT INTO tag (message, tag)
  SELECT DISTINCT m.seq, j.value
    FROM message m, json_each(NEW.tags) j WHERE m.id = NEW.id;

  INSERT INTO recipient (message, address, domain, checksum, priority, state, due_ms, site,
                         generation)
  SELECT m.seq, j.value ->> 0, j.value ->> 1, j.value ->> 2, NEW.priority, 'queued', NEW.send_ms,
         CASE WHEN d.expires_ms > NEW.created_ms AND d.result <> 'temporary' THEN d.site END,
         coalesce(d.generation, 0)
    FROM message m, json_each(NEW.recipients) j
    LEFT JOIN domain d ON d.name = j.value ->> 1
   WHERE m.id = NEW.id;

  UPDATE site SET next_due_ms = NEW.send_ms
   WHERE next_due_ms > NEW.send_ms
     AND seq IN (SELECT r.site FROM recipient r
                  WHERE r.message = (SELECT seq FROM message WHERE id = NEW.id)
                    AND r.site IS NOT NULL);

  INSERT INTO domain (name, due_ms)
  SELECT DISTINCT r.domain, NEW.send_ms
    FROM recipient r
   WHERE r.message = (SELECT seq FROM message WHERE id = NEW.id) AND r.site IS NULL
      ON CONFLICT (name) DO UPDATE SET due_ms = excluded.due_ms
   WHERE due_ms IS NULL OR due_ms > excluded.due_ms;

  INSERT INTO event (at_ms, type, message)
  SELECT NEW.created_ms, 'message.accepted', seq FROM message WHERE id = NEW.id;
END;
