-- A CHECK over a list builds the list for each row that it looks at, as an index of its own in memory.
-- As CASE they compare, and say the same. What was stored under the old text is valid under the new
-- one, so the text alone is changed, in the way that SQLite gives for that (lang_altertable, section 7).
PRAGMA writable_schema = 1;

UPDATE sqlite_schema
   SET sql = replace(replace(sql,
'CHECK (state IN (''queued'', ''claimed'', ''sending'', ''deferred'', ''held'',
                                               ''delivered'', ''failed'', ''cancelled''))',
'CHECK (CASE state
    WHEN ''queued'' THEN due_ms IS NOT NULL AND lane IS NULL AND finished_ms IS NULL
    WHEN ''claimed'' THEN due_ms IS NULL AND lane IS NOT NULL AND finished_ms IS NULL
    WHEN ''sending'' THEN due_ms IS NULL AND lane IS NOT NULL AND finished_ms IS NULL
    WHEN ''delivered'' THEN due_ms IS NULL AND lane IS NULL AND finished_ms IS NOT NULL
    WHEN ''deferred'' THEN due_ms IS NOT NULL AND lane IS NULL AND finished_ms IS NULL
    WHEN ''held'' THEN due_ms IS NULL AND lane IS NULL AND finished_ms IS NULL
                     AND reason IS NOT NULL
    WHEN ''failed'' THEN due_ms IS NULL AND lane IS NULL AND finished_ms IS NOT NULL
                       AND reason IS NOT NULL
    WHEN ''cancelled'' THEN due_ms IS NULL AND lane IS NULL AND finished_ms IS NOT NULL
    ELSE 0 END)'),
',
  CHECK ((state IN (''queued'', ''deferred'')) = (due_ms IS NOT NULL)),
  CHECK ((state IN (''claimed'', ''sending'')) = (lane IS NOT NULL)),
  CHECK ((state IN (''delivered'', ''failed'', ''cancelled'')) = (finished_ms IS NOT NULL)),
  CHECK (state NOT IN (''failed'', ''held'') OR reason IS NOT NULL)', '')
 WHERE type = 'table' AND name = 'recipient';

UPDATE sqlite_schema
   SET sql = replace(replace(sql,
'CHECK (stage IN (''route'', ''connect'', ''greeting'', ''ehlo'', ''starttls'',
                                               ''auth'', ''mail'', ''rcpt'', ''data'', ''body'', ''dot''))',
'CHECK (CASE stage
    WHEN ''dot'' THEN 1 WHEN ''rcpt'' THEN 1 WHEN ''connect'' THEN 1 WHEN ''mail'' THEN 1
    WHEN ''data'' THEN 1 WHEN ''body'' THEN 1 WHEN ''route'' THEN 1 WHEN ''greeting'' THEN 1
    WHEN ''ehlo'' THEN 1 WHEN ''starttls'' THEN 1 WHEN ''auth'' THEN 1 ELSE 0 END)'),
'CHECK (verdict IN (''delivered'', ''deferred'', ''failed'', ''held''))',
'CHECK (CASE verdict WHEN ''delivered'' THEN 1 WHEN ''deferred'' THEN 1 WHEN ''failed'' THEN 1
                      WHEN ''held'' THEN 1 ELSE 0 END)')
 WHERE type = 'table' AND name = 'attempt';

PRAGMA writable_schema = RESET;

-- What a site's hosts were seen to bear of pipelining (column pipelining, since 0001) and of CHUNKING
-- (RFC 3030), each with the time until which a bad experience holds.

ALTER TABLE site ADD COLUMN pipelining_until_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE site ADD COLUMN chunking INTEGER CHECK (chunking IN (0, 1));  -- NULL: never tried
ALTER TABLE site ADD COLUMN chunking_until_ms INTEGER NOT NULL DEFAULT 0;

-- What a look at suspended sites and failing domains must not scan for.
CREATE INDEX site_suspended ON site (suspended_until_ms) WHERE suspended_until_ms > 0;
CREATE INDEX domain_failing ON domain (retry_ms) WHERE result = 'temporary';
-- Nor a look for what has been due longest: sites that are left alone after their time, what waits for
-- a route, and domains whose routed mail waits until they are looked up again.
CREATE INDEX site_kept ON site (next_due_ms)
  WHERE suspended_until_ms > next_due_ms OR paused_ms > next_due_ms;
CREATE INDEX domain_due ON domain (due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX domain_refreshed ON domain (site) WHERE due_ms IS NOT NULL AND site IS NOT NULL;

-- Content that was staged, by the message that names it: few messages are long enough.
CREATE INDEX message_content ON message (content) WHERE content < 0;

-- As in 0001, and wide enough for counting: state and message without the row. By number, which says
-- who is first of what is due at once, before them.
DROP INDEX recipient_due;
CREATE INDEX recipient_due ON recipient (site, priority, due_ms, seq, state, message)
  WHERE due_ms IS NOT NULL AND site IS NOT NULL;
DROP INDEX recipient_unrouted;
CREATE INDEX recipient_unrouted ON recipient (domain, due_ms, state, message)
  WHERE due_ms IS NOT NULL AND site IS NULL;

-- How many recipients wait, and how many messages have such a recipient: states that grow large are
-- counted by triggers, whoever writes. Claimed and sending ones are few; the index over lanes counts
-- them. What comes is queued and numbered without a gap, so that coming costs nothing: the row of
-- 'queued' counts from the numbers that were given out (sqlite_sequence), down.
CREATE TABLE tally (
  state      TEXT PRIMARY KEY CHECK (state IN ('queued', 'deferred', 'held')),
  recipients INTEGER NOT NULL,
  messages   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The same within each message of several recipients: it leaves a state with the last of them. One
-- that was finished when this came has no row until one of its recipients waits again.
CREATE TABLE message_tally (
  message  INTEGER PRIMARY KEY,
  queued   INTEGER NOT NULL,
  deferred INTEGER NOT NULL,
  held     INTEGER NOT NULL
) STRICT;

INSERT INTO message_tally (message, queued, deferred, held)
SELECT r.message, sum(r.state = 'queued'), sum(r.state = 'deferred'), sum(r.state = 'held')
  FROM recipient r
 WHERE r.message IN (SELECT seq FROM message WHERE finished_ms IS NULL)
 GROUP BY r.message HAVING count(*) > 1;

INSERT INTO tally (state, recipients, messages)
VALUES ('queued', (SELECT -coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'recipient'),
                  (SELECT -coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'message')),
       ('deferred', 0, 0), ('held', 0, 0);

-- A message with one recipient counts as that one.
UPDATE tally
   SET recipients = tally.recipients + w.amount,
       messages = tally.messages + w.amount - coalesce(s.amount, 0) + coalesce(s.messages, 0)
  FROM (SELECT state, count(*) AS amount
          FROM (SELECT state FROM recipient WHERE due_ms IS NOT NULL AND site IS NOT NULL
                UNION ALL
                SELECT state FROM recipient WHERE due_ms IS NOT NULL AND site IS NULL
                UNION ALL
                SELECT state FROM recipient WHERE state = 'held')
         GROUP BY state) w
  LEFT JOIN (SELECT 'queued' AS state, sum(queued) AS amount, sum(queued > 0) AS messages
               FROM message_tally
             UNION ALL
             SELECT 'deferred', sum(deferred), sum(deferred > 0) FROM message_tally
             UNION ALL
             SELECT 'held', sum(held), sum(held > 0) FROM message_tally) s ON s.state = w.state
 WHERE tally.state = w.state;

-- A recipient leaves a state: changed, or deleted. Nothing deletes what waits; should somebody, it is
-- counted.
CREATE VIEW tally_left AS SELECT NULL AS message, NULL AS state WHERE 0;

CREATE TRIGGER tally_left_insert INSTEAD OF INSERT ON tally_left
BEGIN
  UPDATE message_tally
     SET queued = queued - (NEW.state = 'queued'), deferred = deferred - (NEW.state = 'deferred'),
         held = held - (NEW.state = 'held')
   WHERE message = NEW.message;
  UPDATE tally
     SET recipients = recipients - 1,
         messages = messages
           - coalesce((SELECT CASE NEW.state WHEN 'queued' THEN queued
                                             WHEN 'deferred' THEN deferred ELSE held END = 0
                         FROM message_tally WHERE message = NEW.message), 1)
   WHERE state = NEW.state;
END;

CREATE TRIGGER tally_leave AFTER UPDATE OF state ON recipient
  WHEN (OLD.due_ms IS NOT NULL OR OLD.state = 'held') AND NEW.state <> OLD.state
BEGIN
  INSERT INTO tally_left (message, state) VALUES (OLD.message, OLD.state);
END;

CREATE TRIGGER tally_delete AFTER DELETE ON recipient
  WHEN OLD.due_ms IS NOT NULL OR OLD.state = 'held'
BEGIN
  INSERT INTO tally_left (message, state) VALUES (OLD.message, OLD.state);
END;

CREATE TRIGGER tally_enter AFTER UPDATE OF state ON recipient
  WHEN (NEW.due_ms IS NOT NULL OR NEW.state = 'held') AND NEW.state <> OLD.state
BEGIN
  INSERT INTO message_tally (message, queued, deferred, held)
  SELECT NEW.message, sum(r.state = 'queued'), sum(r.state = 'deferred'), sum(r.state = 'held')
    FROM (SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM message_tally WHERE message = NEW.message))
   CROSS JOIN recipient r
   WHERE r.message = NEW.message AND r.seq <> NEW.seq
  HAVING count(*) > 0;
  UPDATE message_tally
     SET queued = queued + (NEW.state = 'queued'), deferred = deferred + (NEW.state = 'deferred'),
         held = held + (NEW.state = 'held')
   WHERE message = NEW.message;
  UPDATE tally
     SET recipients = recipients + 1,
         messages = messages
           + coalesce((SELECT CASE NEW.state WHEN 'queued' THEN queued
                                             WHEN 'deferred' THEN deferred ELSE held END = 1
                         FROM message_tally WHERE message = NEW.message), 1)
   WHERE state = NEW.state;
END;

CREATE TRIGGER tally_forget AFTER DELETE ON message
BEGIN
  DELETE FROM message_tally WHERE message = OLD.seq;
END;

-- What few messages need when they are enqueued; the trigger of enqueue alone inserts into it.
-- last: the number of the last of the message's recipients, which are so many (amount).
CREATE VIEW enqueue_more AS
SELECT NULL AS last, NULL AS amount, NULL AS due_ms, NULL AS content, NULL AS tags WHERE 0;

-- As in 0005, in fewer steps, and with the tally of a message of several recipients. What one step
-- needs of the step before it is the number of the row that was inserted last. What few messages need
-- is in a trigger of its own, whose WHEN is cheaper than to open all those tables for nothing.
DROP TRIGGER enqueue_insert;

CREATE TRIGGER enqueue_insert INSTEAD OF INSERT ON enqueue
BEGIN
  INSERT INTO idempotency (key, hash, id, expires_ms)
  SELECT NEW.idempotency_key, NEW.idempotency_hash, NEW.id,
         NEW.created_ms + coalesce((SELECT CAST(value AS INTEGER) FROM meta
                                     WHERE key = 'idempotency_window_ms'), 86400000)
   WHERE NEW.idempotency_key IS NOT NULL
      ON CONFLICT (key) DO UPDATE
     SET hash = excluded.hash, id = excluded.id,
         expires_ms = CASE WHEN expires_ms > NEW.created_ms
                           THEN RAISE(ABORT, 'idempotency key in use')
                           ELSE excluded.expires_ms END;

  INSERT INTO message (id, sender, subject, size, content, chunks, stream, priority, message_id,
                       idempotency_key, metadata, on_doubt, require_tls, eightbit, smtputf8,
                       created_ms, send_ms, expires_ms, digest)
  SELECT NEW.id, NEW.sender, NEW.subject,
         CASE
           WHEN s.name IS NULL THEN NEW.size
           WHEN NEW.size > s.max_size
             THEN RAISE(ABORT, 'it is larger than its stream allows (max_size)')
           WHEN json_array_length(NEW.recipients) > s.max_recipients
             THEN RAISE(ABORT, 'it has more recipients than its stream allows (max_recipients)')
           ELSE NEW.size
         END,
         NEW.content, NEW.chunks, NEW.stream,
         coalesce(NEW.priority, s.priority, 1), NEW.message_id, NEW.idempotency_key, NEW.metadata,
         coalesce(NEW.on_doubt, s.on_doubt), max(NEW.require_tls, coalesce(s.require_tls, 0)),
         NEW.eightbit, NEW.smtputf8, NEW.created_ms, NEW.send_ms,
         coalesce(NEW.expires_ms,
                  NEW.send_ms + coalesce(s.max_age_ms,
                                         (SELECT CAST(value AS INTEGER) FROM meta
                                           WHERE key = 'max_age_ms'), 432000000)),
         NEW.message_digest
    FROM (SELECT 1) LEFT JOIN stream s ON s.name = NEW.stream;

  INSERT INTO content (key, data, digest)
  SELECT last_insert_rowid() * 4096, NEW.body, NEW.digest
   WHERE NEW.content IS NULL;

  INSERT INTO event (at_ms, type, message)
  VALUES (NEW.created_ms, 'message.accepted',
          iif(NEW.content IS NULL, last_insert_rowid() / 4096, last_insert_rowid()));

  INSERT INTO recipient (message, address, domain, checksum, priority, state, due_ms, site,
                         generation)
  SELECT m.seq, j.value ->> 0, j.value ->> 1, j.value ->> 2, m.priority, 'queued', NEW.send_ms,
         CASE WHEN d.expires_ms > NEW.created_ms AND d.result <> 'temporary' THEN d.site END,
         coalesce(d.generation, 0)
    FROM (SELECT seq, priority FROM message ORDER BY seq DESC LIMIT 1) m
   CROSS JOIN json_each(NEW.recipients) j
    LEFT JOIN domain d ON d.name = j.value ->> 1;

  INSERT INTO enqueue_more (last, amount, due_ms, content, tags)
  VALUES (last_insert_rowid(), json_array_length(NEW.recipients), NEW.send_ms, NEW.content,
          nullif(NEW.tags, '[]'));
END;

CREATE TRIGGER enqueue_more_insert INSTEAD OF INSERT ON enqueue_more
  WHEN NEW.amount <> 1 OR NEW.content IS NOT NULL OR NEW.tags IS NOT NULL
    OR (SELECT CASE WHEN r.site IS NULL
                    THEN coalesce((SELECT due_ms FROM domain WHERE name = r.domain) > NEW.due_ms, 1)
                    ELSE (SELECT next_due_ms FROM site WHERE seq = r.site) > NEW.due_ms END
          FROM recipient r WHERE r.seq = NEW.last)
BEGIN
  DELETE FROM staged WHERE seq = -NEW.content;

  INSERT INTO tag (message, tag)
  SELECT (SELECT max(seq) FROM message), j.value FROM json_each(NEW.tags) j WHERE true
      ON CONFLICT DO NOTHING;

  INSERT INTO message_tally (message, queued, deferred, held)
  SELECT (SELECT max(seq) FROM message), NEW.amount, 0, 0 WHERE NEW.amount > 1;

  UPDATE site SET next_due_ms = NEW.due_ms
   WHERE next_due_ms > NEW.due_ms
     AND seq IN (SELECT site FROM recipient
                  WHERE seq > NEW.last - NEW.amount AND seq <= NEW.last AND site IS NOT NULL);

  INSERT INTO domain (name, due_ms)
  SELECT domain, NEW.due_ms FROM recipient
   WHERE seq > NEW.last - NEW.amount AND seq <= NEW.last AND site IS NULL
      ON CONFLICT (name) DO UPDATE SET due_ms = excluded.due_ms
   WHERE due_ms IS NULL OR due_ms > excluded.due_ms;
END;

-- What waits by status, as the recipients view shows it, for a price that does not grow with the queue:
-- the tally, put right by what is claimed, on the wire, or shown deferred since its site is suspended
-- or the DNS of its domain fails. Rows that are stamped for a site that their domain has left are not
-- put right for their domain: the next look of a claim sends them back to the router.
CREATE VIEW queue_counts AS
WITH clock_now AS (
  SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now_ms),
failing AS (
  SELECT d.name, d.site, d.usable_ms + 60000 <= n.now_ms AS outdated
    FROM clock_now n CROSS JOIN domain d INDEXED BY domain_failing
   WHERE d.result = 'temporary' AND d.retry_ms > n.now_ms),
shown AS NOT MATERIALIZED (
  SELECT r.message, -1 AS queued, 1 AS deferred, 0 AS sending
    FROM clock_now n CROSS JOIN site s CROSS JOIN recipient r
   WHERE s.suspended_until_ms > n.now_ms AND s.suspended_until_ms > 0
     AND r.site = s.seq AND r.priority IN (0, 1, 2) AND r.due_ms IS NOT NULL
     AND r.due_ms <= n.now_ms AND r.state = 'queued'
   UNION ALL
  SELECT r.message, -1, 1, 0
    FROM clock_now n CROSS JOIN failing f CROSS JOIN recipient r
   WHERE r.domain = f.name AND r.site IS NULL AND r.due_ms IS NOT NULL
     AND r.due_ms <= n.now_ms AND r.state = 'queued'
   UNION ALL
  SELECT r.message, -1, 1, 0
    FROM clock_now n
   CROSS JOIN (SELECT DISTINCT site FROM failing WHERE outdated AND site IS NOT NULL) f
   CROSS JOIN site s CROSS JOIN recipient r CROSS JOIN domain d
   WHERE s.seq = f.site AND s.suspended_until_ms <= n.now_ms
     AND r.site = s.seq AND r.priority IN (0, 1, 2) AND r.due_ms IS NOT NULL
     AND r.due_ms <= n.now_ms AND r.state = 'queued'
     AND d.name = r.domain AND d.result = 'temporary' AND d.retry_ms > n.now_ms
     AND d.usable_ms + 60000 <= n.now_ms
   UNION ALL
  SELECT r.message, r.deferrals = 0 AND NOT r.in_doubt, r.deferrals > 0 OR r.in_doubt, 0
    FROM recipient r WHERE r.lane IS NOT NULL AND r.state = 'claimed'
   UNION ALL
  SELECT r.message, 0, 0, 1
    FROM recipient r WHERE r.lane IS NOT NULL AND r.state = 'sending'),
moved AS (
  SELECT sum(x.queued) AS queued, sum(x.deferred) AS deferred, sum(x.sending) AS sending,
         sum(x.queued) AS queued_messages, sum(x.deferred) AS deferred_messages,
         sum(x.sending) AS sending_messages
    FROM shown x WHERE NOT EXISTS (SELECT 1 FROM message_tally t WHERE t.message = x.message)
   UNION ALL
  SELECT sum(g.queued), sum(g.deferred), sum(g.sending),
         sum((t.queued + g.queued > 0) - (t.queued > 0)),
         sum((t.deferred + g.deferred > 0) - (t.deferred > 0)), sum(g.sending > 0)
    FROM (SELECT x.message, sum(x.queued) AS queued, sum(x.deferred) AS deferred,
                 sum(x.sending) AS sending
            FROM shown x CROSS JOIN message_tally t ON t.message = x.message
           GROUP BY x.message) g
    JOIN message_tally t ON t.message = g.message),
counted AS (
  SELECT 'queued' AS status, sum(queued) AS recipients, sum(queued_messages) AS messages FROM moved
   UNION ALL SELECT 'sending', sum(sending), sum(sending_messages) FROM moved
   UNION ALL SELECT 'deferred', sum(deferred), sum(deferred_messages) FROM moved
   UNION ALL SELECT 'held', 0, 0)
SELECT c.status,
       coalesce(c.recipients, 0) + coalesce(t.recipients, 0)
         + coalesce((SELECT seq FROM sqlite_sequence
                      WHERE name = 'recipient' AND c.status = 'queued'), 0) AS recipients,
       coalesce(c.messages, 0) + coalesce(t.messages, 0)
         + coalesce((SELECT seq FROM sqlite_sequence
                      WHERE name = 'message' AND c.status = 'queued'), 0) AS messages
  FROM counted c LEFT JOIN tally t ON t.state = c.status;

DROP VIEW destinations;

-- As in 0002, with what pipelining is used now and until when a bad experience holds.
CREATE VIEW destinations AS
SELECT s.key AS site, s.provider, s.hosts,
       (SELECT json_group_array(d.name) FROM domain d WHERE d.site = s.seq) AS domains,
       (SELECT count(*) FROM recipient r
         WHERE r.site = s.seq AND r.due_ms IS NOT NULL AND r.state = 'queued') AS queued,
       (SELECT count(*) FROM recipient r
         WHERE r.site = s.seq AND r.due_ms IS NOT NULL AND r.state = 'deferred') AS deferred,
       s.oldest_due_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', s.oldest_due_ms / 1000.0, 'unixepoch') AS oldest_due_at,
       (SELECT count(*) FROM lane l WHERE l.site = s.seq) AS lanes,
       (SELECT min(CAST(value AS INTEGER), coalesce(s.lane_cap, CAST(value AS INTEGER)))
          FROM meta WHERE key = 'lanes_limit') AS lanes_limit,
       nullif(s.suspended_until_ms, 0) AS suspended_until_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', nullif(s.suspended_until_ms, 0) / 1000.0,
                'unixepoch') AS suspended_until_at,
       s.suspended_by, s.suspended_reason AS reason, s.last_reply,
       iif(s.pipelining_until_ms > s.now_ms, s.pipelining, 'full') AS pipelining,
       iif(s.pipelining_until_ms > s.now_ms, s.pipelining_until_ms, NULL) AS pipelining_until_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ',
                iif(s.pipelining_until_ms > s.now_ms, s.pipelining_until_ms, NULL) / 1000.0,
                'unixepoch') AS pipelining_until_at,
       CASE WHEN s.chunking = 1 THEN 'proved'
            WHEN s.chunking = 0 AND s.chunking_until_ms > s.now_ms THEN 'mishandled'
       END AS chunking
  FROM (SELECT o.*, n.now_ms,
               (SELECT min(p.due_ms)
                  FROM (SELECT (SELECT min(r.due_ms) FROM recipient r
                                 WHERE r.site = o.seq AND r.priority = p.column1
                                   AND r.due_ms IS NOT NULL) AS due_ms
                          FROM (VALUES (0), (1), (2)) p) p) AS oldest_due_ms
          FROM site o,
               (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now_ms) n) s;

INSERT INTO schema_info (version, view, "column", type, description) VALUES
(6, 'queue_counts', 'status', 'TEXT', 'queued sending deferred held, as in recipients'),
(6, 'queue_counts', 'recipients', 'INTEGER', 'recipients with this status'),
(6, 'queue_counts', 'messages', 'INTEGER', 'messages that have such a recipient'),
(6, 'destinations', 'pipelining_until_ms', 'INTEGER', 'until when less pipelining is used there after a bad experience, milliseconds since 1970 UTC, or null'),
(6, 'destinations', 'pipelining_until_at', 'TEXT', 'until when less pipelining is used there after a bad experience, ISO 8601 UTC, or null'),
(6, 'destinations', 'chunking', 'TEXT', 'proved or mishandled where CHUNKING (RFC 3030) was tried there, else null');
