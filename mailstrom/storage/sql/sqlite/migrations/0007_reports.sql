-- Mail that others hand in, and what its senders asked to be told of it (RFC 3461, 3464). NULL and 0 are
-- what older clients, and the library, leave: no reports.

ALTER TABLE message ADD COLUMN origin TEXT;  -- smtp, sendmail, report; NULL: library
ALTER TABLE message ADD COLUMN client TEXT CHECK (client IS NULL OR json_valid(client));
ALTER TABLE message ADD COLUMN ret TEXT CHECK (ret IS NULL OR ret = 'full' OR ret = 'hdrs');
ALTER TABLE message ADD COLUMN envid TEXT;
ALTER TABLE message ADD COLUMN reports INTEGER NOT NULL DEFAULT 0 CHECK (reports = 0 OR reports = 1);
ALTER TABLE message ADD COLUMN priority_wire INTEGER;
-- Since when it is late, which is when it was to be sent, and of how many of the engine's thresholds
-- (which are not known here) its sender was told. NULL: nobody wants to hear of it.
ALTER TABLE message ADD COLUMN delay_from_ms INTEGER;
ALTER TABLE message ADD COLUMN delays_told INTEGER NOT NULL DEFAULT 0;
-- 1: only to hosts whose certificates prove their names, and that ask the same of those behind them
-- (RFC 8689).
ALTER TABLE message ADD COLUMN requiretls INTEGER NOT NULL DEFAULT 0
  CHECK (requiretls = 0 OR requiretls = 1);

CREATE INDEX message_delay ON message (delays_told, delay_from_ms)
  WHERE delay_from_ms IS NOT NULL AND finished_ms IS NULL;

ALTER TABLE recipient ADD COLUMN notify TEXT;    -- never, or failure delay success with commas
ALTER TABLE recipient ADD COLUMN orcpt TEXT;     -- type;address
-- What its sender is told of: 1 failure + 2 delay + 4 success; NULL: nothing. Made once, so that what
-- wants no report pays for none.
ALTER TABLE recipient ADD COLUMN wants INTEGER;
ALTER TABLE recipient ADD COLUMN reported TEXT;  -- what was reported last: failed delayed relayed none

-- What is yet to be reported. A row comes with what is to be reported, in its transaction, and goes with
-- the report, in that one's.
CREATE TABLE owed (
  message   INTEGER NOT NULL,
  recipient INTEGER NOT NULL,
  kind      TEXT NOT NULL CHECK (kind = 'failed' OR kind = 'delayed' OR kind = 'relayed'),
  tries     INTEGER NOT NULL DEFAULT 0,  -- how often a report of it was begun that is not made yet
  due_ms    INTEGER NOT NULL DEFAULT 0,  -- not to be tried again before
  PRIMARY KEY (message, recipient)
) STRICT, WITHOUT ROWID;

CREATE INDEX owed_due ON owed (due_ms, message, kind);

-- Final, or reopened: then the failure is none any more, and nobody is to hear of it. Who was lost on
-- the wire may have been lost by a process that died of the report: that counts as one begun.
CREATE TRIGGER owed_final AFTER UPDATE OF state ON recipient
  WHEN NEW.wants IS NOT NULL AND (OLD.finished_ms IS NULL) <> (NEW.finished_ms IS NULL)
BEGIN
  DELETE FROM owed WHERE message = NEW.message AND recipient = NEW.seq;
  INSERT INTO owed (message, recipient, kind, tries, due_ms)
  SELECT NEW.message, NEW.seq, CASE NEW.state WHEN 'failed' THEN 'failed' ELSE 'relayed' END,
         OLD.doubts > 0, NEW.finished_ms + 60000
   WHERE (NEW.state = 'failed' AND NEW.wants & 1) OR (NEW.state = 'delivered' AND NEW.wants & 4);
END;

CREATE TRIGGER owed_whole AFTER UPDATE OF finished_ms ON message
  WHEN NEW.reports AND NEW.finished_ms IS NOT NULL
BEGIN
  UPDATE owed SET due_ms = 0 WHERE message = NEW.seq AND tries < 2;
END;

CREATE TRIGGER owed_forget AFTER DELETE ON recipient
  WHEN OLD.wants IS NOT NULL
BEGIN
  DELETE FROM owed WHERE message = OLD.message AND recipient = OLD.seq;
END;

DROP VIEW enqueue;

-- As in 0005, and what is new here. notices: recipients are [address, domain, checksum, notify, orcpt].
CREATE VIEW enqueue AS
SELECT NULL AS id, NULL AS sender, NULL AS subject, NULL AS size, NULL AS content, NULL AS chunks,
       NULL AS body, NULL AS digest, NULL AS stream, NULL AS priority, NULL AS message_id,
       NULL AS idempotency_key, NULL AS idempotency_hash,
       NULL AS metadata, NULL AS tags, NULL AS on_doubt, NULL AS require_tls, NULL AS eightbit,
       NULL AS smtputf8, NULL AS created_ms, NULL AS send_ms, NULL AS expires_ms,
       NULL AS recipients, NULL AS message_digest, NULL AS origin, NULL AS client, NULL AS ret,
       NULL AS envid, NULL AS reports, NULL AS notices, NULL AS priority_wire,
       NULL AS requiretls
 WHERE 0;

-- As in 0006, and what is new here.
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
                       created_ms, send_ms, expires_ms, digest, origin, client, ret, envid, reports,
                       priority_wire, delay_from_ms, requiretls)
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
         NEW.message_digest, nullif(NEW.origin, 'library'), NEW.client, NEW.ret, NEW.envid,
         coalesce(NEW.reports, 0), NEW.priority_wire,
         CASE WHEN NEW.reports AND NEW.sender <> '' THEN NEW.send_ms END,
         coalesce(NEW.requiretls, 0)
    FROM (SELECT 1) LEFT JOIN stream s ON s.name = NEW.stream;

  INSERT INTO content (key, data, digest)
  SELECT last_insert_rowid() * 4096, NEW.body, NEW.digest
   WHERE NEW.content IS NULL;

  INSERT INTO event (at_ms, type, message)
  VALUES (NEW.created_ms, 'message.accepted',
          iif(NEW.content IS NULL, last_insert_rowid() / 4096, last_insert_rowid()));

  INSERT INTO recipient (message, address, domain, checksum, priority, state, due_ms, site,
                         generation, notify, orcpt, wants)
  SELECT m.seq, j.value ->> 0, j.value ->> 1, j.value ->> 2, m.priority, 'queued', NEW.send_ms,
         CASE WHEN d.expires_ms > NEW.created_ms AND d.result <> 'temporary' THEN d.site END,
         coalesce(d.generation, 0),
         CASE WHEN NEW.notices THEN j.value ->> 3 END, CASE WHEN NEW.notices THEN j.value ->> 4 END,
         CASE WHEN NEW.reports AND NEW.sender <> ''
              THEN CASE WHEN NEW.notices AND j.value ->> 3 IS NOT NULL
                        THEN nullif((instr(j.value ->> 3, 'failure') > 0)
                                    + 2 * (instr(j.value ->> 3, 'delay') > 0)
                                    + 4 * (instr(j.value ->> 3, 'success') > 0), 0)
                        ELSE 3 END END
    FROM (SELECT seq, priority FROM message ORDER BY seq DESC LIMIT 1) m
   CROSS JOIN json_each(NEW.recipients) j
    LEFT JOIN domain d ON d.name = j.value ->> 1;

  INSERT INTO enqueue_more (last, amount, due_ms, content, tags)
  VALUES (last_insert_rowid(), json_array_length(NEW.recipients), NEW.send_ms, NEW.content,
          nullif(NEW.tags, '[]'));
END;

DROP VIEW messages;
DROP VIEW recipients;
DROP VIEW recipient_now;

-- These three as in 0002, with what is new at their ends.
CREATE VIEW recipient_now AS
SELECT r.seq, r.message, r.address, r.domain, r.site, s.key AS site_key, s.provider,
       CASE
         WHEN r.state = 'claimed'
           THEN CASE WHEN r.deferrals > 0 OR r.in_doubt THEN 'deferred' ELSE 'queued' END
         WHEN r.state = 'queued' AND r.due_ms <= n.now_ms
              AND (s.suspended_until_ms > n.now_ms
                   OR (d.result = 'temporary' AND d.retry_ms > n.now_ms
                       AND (r.site IS NULL OR d.usable_ms + 60000 <= n.now_ms)))
           THEN 'deferred'
         ELSE r.state
       END AS status,
       CASE
         WHEN r.state = 'queued' AND r.due_ms <= n.now_ms AND s.suspended_until_ms > n.now_ms
           THEN s.suspended_reason
         WHEN r.state = 'queued' AND r.due_ms <= n.now_ms
              AND d.result = 'temporary' AND d.retry_ms > n.now_ms
              AND (r.site IS NULL OR d.usable_ms + 60000 <= n.now_ms)
           THEN 'dns'
         WHEN r.state = 'queued' OR (r.state = 'claimed' AND r.deferrals = 0 AND NOT r.in_doubt)
           THEN NULL
         ELSE r.reason
       END AS reason,
       CASE
         WHEN r.due_ms IS NULL THEN NULL
         WHEN r.site IS NULL THEN max(r.due_ms, coalesce(d.retry_ms, 0))
         WHEN d.result = 'temporary' AND d.usable_ms + 60000 <= n.now_ms
           THEN max(r.due_ms, coalesce(s.suspended_until_ms, 0), d.retry_ms)
         ELSE max(r.due_ms, coalesce(s.suspended_until_ms, 0))
       END AS next_attempt_ms,
       r.attempts, r.in_doubt, r.last_ms, r.finished_ms, r.mx, r.reply_code, r.enhanced_code,
       CASE
         WHEN r.reply_text IS NOT NULL THEN r.reply_text
         WHEN r.state = 'queued' AND s.suspended_until_ms > n.now_ms THEN s.last_reply
         WHEN r.state = 'queued' AND d.result = 'temporary'
              AND (r.site IS NULL OR d.usable_ms + 60000 <= n.now_ms) THEN d.error
       END AS reply_text,
       r.tls, r.notify, r.orcpt, r.reported
  FROM recipient r
  JOIN (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now_ms) n
  LEFT JOIN site s ON s.seq = r.site
  LEFT JOIN domain d ON d.name = r.domain;

CREATE VIEW recipients AS
SELECT m.id AS message_id, r.address, r.domain, r.site_key AS site, r.provider, r.status, r.reason,
       r.attempts, r.in_doubt,
       r.next_attempt_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.next_attempt_ms / 1000.0, 'unixepoch') AS next_attempt_at,
       r.last_ms AS last_attempt_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.last_ms / 1000.0, 'unixepoch') AS last_attempt_at,
       r.finished_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.finished_ms / 1000.0, 'unixepoch') AS finished_at,
       r.mx, r.reply_code, r.enhanced_code, r.reply_text, r.tls, r.notify,
       r.orcpt, r.reported
  FROM recipient_now r JOIN message m ON m.seq = r.message;

CREATE VIEW messages AS
SELECT m.id,
       (SELECT CASE
                 WHEN min(r.status) = max(r.status) THEN min(r.status)
                 WHEN sum(r.status IN ('delivered', 'failed', 'cancelled')) = count(*)
                   THEN 'partial'
                 WHEN max(r.status = 'sending') THEN 'sending'
                 WHEN max(r.status = 'deferred') THEN 'deferred'
                 WHEN max(r.status = 'queued') THEN 'queued'
                 ELSE 'held'
               END
          FROM recipient_now r WHERE r.message = m.seq) AS status,
       m.sender, m.subject, m.size, m.stream,
       CASE m.priority WHEN 0 THEN 'high' WHEN 1 THEN 'normal' ELSE 'low' END AS priority,
       m.message_id, m.idempotency_key,
       (SELECT json_group_array(t.tag) FROM tag t WHERE t.message = m.seq) AS tags,
       m.metadata,
       m.created_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', m.created_ms / 1000.0, 'unixepoch') AS created_at,
       m.send_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', m.send_ms / 1000.0, 'unixepoch') AS send_at,
       m.expires_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', m.expires_ms / 1000.0, 'unixepoch') AS expires_at,
       m.finished_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', m.finished_ms / 1000.0, 'unixepoch') AS finished_at,
       coalesce(m.origin, 'library') AS origin, m.client, m.ret, m.envid, m.priority_wire,
       m.requiretls
  FROM message m;

INSERT INTO schema_info (version, view, "column", type, description) VALUES
(7, 'messages', 'origin', 'TEXT', 'how it came: library smtp sendmail, or report for a report about another message'),
(7, 'messages', 'client', 'JSON', 'what is known of who handed it in (address helo user tls), or null'),
(7, 'messages', 'ret', 'TEXT', 'how much of it a report returns (RFC 3461): full hdrs, or null where nothing was said'),
(7, 'messages', 'envid', 'TEXT', 'envelope id given by its sender (RFC 3461), or null'),
(7, 'messages', 'priority_wire', 'INTEGER', 'MT-PRIORITY as asked for (RFC 6710), -9 to 9, or null'),
(7, 'messages', 'requiretls', 'INTEGER', '1 where its sender demands verified TLS on the whole way (REQUIRETLS, RFC 8689)'),
(7, 'recipients', 'notify', 'TEXT', 'what its sender wants to be told of (RFC 3461): never, or some of failure delay success with commas, or null where nothing was said'),
(7, 'recipients', 'orcpt', 'TEXT', 'original recipient given by its sender (RFC 3461), type;address, or null'),
(7, 'recipients', 'reported', 'TEXT', 'what its sender was told of last in a report: failed delayed relayed, none where no report could be made, or null');

UPDATE schema_info SET description = 'what it does: delivery, janitor, listener'
 WHERE view = 'workers' AND "column" = 'kind';
