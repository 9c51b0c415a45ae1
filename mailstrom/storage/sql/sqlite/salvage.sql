-- Making a sound spool of what was found in a damaged one; ``found`` is the scratch database.

-- name: found_messages
-- Candidates by number; of each the newest image first.
SELECT seq, id, sender, subject, size, content, chunks, stream, priority, message_id,
       idempotency_key, metadata, on_doubt, require_tls, eightbit, smtputf8, created_ms, send_ms,
       expires_ms, finished_ms, purged_ms, digest, origin, client, ret, envid, coalesce(reports, 0),
       priority_wire, delay_from_ms, coalesce(delays_told, 0), coalesce(requiretls, 0)
  FROM found.message WHERE seq BETWEEN 1 AND 1099511627776 ORDER BY seq, rank;

-- name: found_recipients
SELECT seq, message, address, domain, checksum, priority, state, reason, site, generation, due_ms,
       lane, session, opened_ms, attempts, deferrals, in_doubt, doubts, reopened_ms, last_ms,
       finished_ms, mx, reply_code, enhanced_code, reply_text, tls, notify, orcpt, wants, reported
  FROM found.recipient
 WHERE message = :message AND seq BETWEEN 1 AND 1099511627776
 ORDER BY seq, rank;

-- name: found_chunks
SELECT key, page, image, cell FROM found.content
 WHERE key BETWEEN :first AND :last ORDER BY key, image;

-- name: found_unnamed
-- Staged content that no row names, of so many chunks and bytes.
SELECT id FROM found.unnamed
 WHERE chunks = :chunks AND :size BETWEEN least AND most ORDER BY id DESC;

-- name: find_unnamed
-- Images of one chunk may differ in size where one of them is damaged.
INSERT INTO found.unnamed (id, chunks, least, most)
SELECT key >> 12, count(*), sum(least), sum(most)
  FROM (SELECT key, min(size) AS least, max(size) AS most FROM found.content
         WHERE key BETWEEN -4503599627370496 AND -1
           AND key >> 12 NOT IN (SELECT content FROM found.message WHERE content IS NOT NULL)
         GROUP BY key)
 GROUP BY key >> 12;

-- name: found_attempts
SELECT seq, recipient, session, worker, started_ms, ended_ms, stage, host, address, reply_code,
       enhanced_code, reply_text, verdict, reason, in_doubt, late
  FROM found.attempt
 WHERE message = :message AND seq BETWEEN 1 AND 1099511627776 ORDER BY seq, rank;

-- name: found_events
SELECT id, at_ms, type, recipient, detail
  FROM found.event
 WHERE message = :message AND id BETWEEN 1 AND 1099511627776 AND json_valid(detail)
 ORDER BY id, rank;

-- name: found_addresses
-- What the index over message and address tells of a message's recipients.
SELECT address, recipient FROM found.address
 WHERE message = :message AND recipient BETWEEN 1 AND 1099511627776 ORDER BY recipient;

-- name: found_told
-- Recipients of a message that are told of.
SELECT recipient FROM found.attempt WHERE message = :message
 UNION SELECT recipient FROM found.event WHERE message = :message AND recipient IS NOT NULL;

-- name: found_numbers
SELECT count(*) FROM (SELECT seq FROM found.recipient WHERE seq BETWEEN :first AND :last
                       UNION SELECT recipient FROM found.address
                              WHERE recipient BETWEEN :first AND :last);

-- name: found_lost
-- Messages that something tells of, and whose own row is lost.
SELECT t.message, min(n.id)
  FROM (SELECT message FROM found.recipient
         UNION SELECT message FROM found.address
         UNION SELECT message FROM found.named WHERE typeof(id) = 'text'
         UNION SELECT message FROM found.attempt
         UNION SELECT message FROM found.event WHERE message IS NOT NULL
         UNION SELECT key >> 12 FROM found.content WHERE key > 0) t
  LEFT JOIN found.named n ON n.message = t.message AND typeof(n.id) = 'text'
 WHERE NOT EXISTS (SELECT 1 FROM found.message m WHERE m.seq = t.message)
 GROUP BY t.message ORDER BY t.message;

-- name: found_lost_recipients
SELECT address, seq FROM found.recipient WHERE message = :message
 UNION SELECT address, recipient FROM found.address WHERE message = :message ORDER BY 2, 1;

-- name: found_replaced
-- Messages that stand only in pages of the database file which the -wal replaced, or under a number
-- that another has now. Of them, how many cannot have been deleted since: a number is given out once,
-- so nobody else can have it, and none is beyond the last. Then how many were not finished.
SELECT count(*),
       coalesce(sum(r.seq > (SELECT max(coalesce((SELECT max(seq) FROM found.numbers), 0),
                                        coalesce((SELECT max(seq) FROM found.message), 0)))
                    OR EXISTS (SELECT 1 FROM found.message m WHERE m.seq = r.seq AND m.id <> r.id)), 0),
       coalesce(sum(r.finished_ms IS NULL), 0)
  FROM (SELECT id, seq, message_id, created_ms, max(finished_ms) AS finished_ms
          FROM (SELECT id, seq, message_id, created_ms, finished_ms FROM found.replaced
                 UNION ALL
                SELECT id, seq, message_id, created_ms, finished_ms FROM found.message)
         GROUP BY id) r
 WHERE NOT EXISTS (SELECT 1 FROM message WHERE id = r.id)
   AND r.id NOT IN (SELECT value FROM json_each(:named))
   AND NOT EXISTS (SELECT 1 FROM found.message m  -- itself, its id damaged
                    WHERE m.seq = r.seq AND m.id <> r.id AND m.message_id = r.message_id
                      AND m.created_ms = r.created_ms);

-- name: salvage_numbers
-- New numbers come behind all that were found, or they would be given out twice.
INSERT INTO sqlite_sequence (name, seq)
SELECT 'recipient', coalesce(max(seq), 0) FROM found.recipient WHERE seq < :most
 UNION ALL SELECT 'attempt', coalesce(max(seq), 0) FROM found.attempt WHERE seq < :most
 UNION ALL SELECT 'event', coalesce(max(id), 0) FROM found.event WHERE id < :most;

-- name: salvage_has_recipient
SELECT 1 FROM recipient WHERE seq = :seq;

-- name: salvage_has_attempt
SELECT 1 FROM attempt WHERE seq = :seq;

-- name: salvage_has_content
SELECT 1 FROM content WHERE key = :key;

-- name: salvage_message
INSERT INTO message (seq, id, sender, subject, size, content, chunks, stream, priority, message_id,
                     idempotency_key, metadata, on_doubt, require_tls, eightbit, smtputf8,
                     created_ms, send_ms, expires_ms, finished_ms, purged_ms, digest, origin,
                     client, ret, envid, reports, priority_wire, delay_from_ms,
                     delays_told, requiretls)
VALUES (:seq, :id, :sender, :subject, :size, :content, :chunks, :stream, :priority, :message_id,
        :idempotency_key, :metadata, :on_doubt, :require_tls, :eightbit, :smtputf8, :created_ms,
        :send_ms, :expires_ms, :finished_ms, :purged_ms, :digest, :origin, :client, :ret, :envid,
        :reports, :priority_wire, :delay_from_ms, :delays_told, :requiretls);

-- name: salvage_content
INSERT INTO content (key, data, digest) VALUES (:key, :data, :digest);

-- name: salvage_recipient
INSERT INTO recipient (seq, message, address, domain, checksum, priority, state, reason, due_ms,
                       attempts, deferrals, in_doubt, doubts, reopened_ms, last_ms, finished_ms, mx,
                       reply_code, enhanced_code, reply_text, tls, notify, orcpt, wants, reported)
VALUES (:seq, :message, :address, :domain, :checksum, :priority, :state, :reason, :due_ms,
        :attempts, :deferrals, :in_doubt, :doubts, :reopened_ms, :last_ms, :finished_ms, :mx,
        :reply_code, :enhanced_code, :reply_text, :tls, :notify, :orcpt, :wants, :reported)
RETURNING seq;

-- name: salvage_attempt
INSERT INTO attempt (seq, message, recipient, number, session, worker, started_ms, ended_ms, stage,
                     host, address, reply_code, enhanced_code, reply_text, verdict, reason,
                     in_doubt, late)
VALUES (:seq, :message, :recipient, :number, :session, :worker, :started_ms, :ended_ms, :stage,
        :host, :address, :reply_code, :enhanced_code, :reply_text, :verdict, :reason, :in_doubt,
        :late);

-- name: salvage_event
INSERT INTO event (id, at_ms, type, message, recipient, detail)
VALUES (:id, :at_ms, :type, :message, :recipient, :detail);

-- name: salvage_new_event
INSERT INTO event (at_ms, type, message, recipient, detail)
VALUES (:at_ms, :type, :message, :recipient, :detail);

-- name: salvage_tags
INSERT OR IGNORE INTO tag (tag, message)
SELECT t.tag, t.message
  FROM (SELECT tag, message FROM found.tag UNION SELECT tag, message FROM found.tag_message) t
  JOIN message m ON m.seq = t.message
 WHERE typeof(t.tag) = 'text';

-- name: salvage_idempotency
-- Only of messages that are here: a key that names a lost message would refuse its second sending.
INSERT OR IGNORE INTO idempotency (key, hash, id, expires_ms)
SELECT i.key, i.hash, i.id, i.expires_ms
  FROM found.idempotency i JOIN message m ON m.id = i.id AND m.idempotency_key = i.key
 WHERE typeof(i.key) = 'text' AND typeof(i.hash) = 'blob' AND typeof(i.expires_ms) = 'integer'
 ORDER BY i.rank;

-- name: salvage_suppression
INSERT OR IGNORE INTO suppression (address, scope, reason, created_ms, expires_ms, evidence)
SELECT address, scope, reason, created_ms, expires_ms, evidence
  FROM found.suppression
 WHERE typeof(address) = 'text' AND typeof(scope) = 'text' AND typeof(reason) = 'text'
   AND typeof(created_ms) = 'integer' AND typeof(expires_ms) IN ('integer', 'null')
   AND typeof(evidence) IN ('text', 'null')
 ORDER BY rank;

-- name: salvage_meta
INSERT INTO meta (key, value)
SELECT key, max(value) FROM found.meta
 WHERE typeof(value) = 'integer' AND value > 0
   AND key IN ('retention_bodies_ms', 'retention_attempts_ms', 'retention_events_ms', 'max_age_ms',
               'idempotency_window_ms')
 GROUP BY key
    ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: salvage_max_age
SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'max_age_ms';

-- name: salvage_domains
-- Everything that waits goes to the router.
INSERT INTO domain (name, due_ms)
SELECT domain, min(due_ms) FROM recipient WHERE due_ms IS NOT NULL GROUP BY domain;

-- name: salvage_owed
-- A failure that no report tells of yet; the copy tells once it is adopted.
INSERT INTO owed (message, recipient, kind)
SELECT message, seq, 'failed' FROM recipient
 WHERE state = 'failed' AND wants & 1 AND reported IS NULL;

-- name: salvage_hours
-- The sums of what is told by the events that are left.
INSERT INTO hour_stat (hour_ms, stream, domain, status, reason, recipients, bytes, ms_sum)
SELECT e.at_ms / 3600000 * 3600000, m.stream, r.domain,
       CASE e.type WHEN 'message.cancelled' THEN 'cancelled' WHEN 'message.held' THEN 'held'
                   ELSE substr(e.type, 11) END AS status,
       coalesce(e.detail ->> 'reason', ''), count(*), sum(m.size),
       sum(max(e.at_ms - m.created_ms, 0))
  FROM event e JOIN message m ON m.seq = e.message JOIN recipient r ON r.seq = e.recipient
 WHERE e.type IN ('recipient.delivered', 'recipient.failed', 'recipient.deferred',
                  'recipient.held', 'message.cancelled', 'message.held')
   AND coalesce(e.detail ->> 'counted', 1)
 GROUP BY 1, 2, 3, 4, 5;

-- name: salvage_staged
-- Numbers of staged content are not given out again.
INSERT INTO staged (seq, created_ms)
SELECT -min(content), 0 FROM message WHERE content < 0 HAVING min(content) < 0;

-- name: salvage_unstage
DELETE FROM staged;

-- name: salvage_message_tally
-- Rows came in any state and order: the triggers' sums are made anew.
INSERT INTO message_tally (message, queued, deferred, held)
SELECT message, sum(state = 'queued'), sum(state = 'deferred'), sum(state = 'held')
  FROM recipient WHERE true GROUP BY message HAVING count(*) > 1
    ON CONFLICT (message) DO UPDATE SET queued = excluded.queued, deferred = excluded.deferred,
                                        held = excluded.held;

-- name: salvage_tally
UPDATE tally
   SET recipients = (SELECT count(*) FROM recipient WHERE state = tally.state)
         - (tally.state = 'queued')
           * coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'recipient'), 0),
       messages = (SELECT count(DISTINCT message) FROM recipient WHERE state = tally.state)
         - (tally.state = 'queued')
           * coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'message'), 0);
