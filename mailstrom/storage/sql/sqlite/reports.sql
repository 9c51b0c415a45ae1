-- What is owed to senders (RFC 3464), and what was told them.

-- name: owed_due
-- Reports that can be made now, those that were never begun first, and how often they were.
SELECT message, kind,
       (SELECT max(o.tries) FROM owed o WHERE o.message = d.message AND o.kind = d.kind)
  FROM (SELECT DISTINCT message, kind FROM owed INDEXED BY owed_due
         WHERE due_ms <= :now_ms LIMIT :most) d;

-- name: owed_waits
-- Whether it is worth while to look whose report is due.
SELECT EXISTS (SELECT 1 FROM owed INDEXED BY owed_due WHERE due_ms <= :now_ms);

-- name: owed_now
-- Of these recipients' reports those that nobody ever began, nor may have died in.
SELECT DISTINCT o.message, o.kind
  FROM json_each(:recipients) j
 CROSS JOIN recipient r ON r.seq = j.value
 CROSS JOIN owed o ON o.message = r.message AND o.recipient = r.seq
 WHERE o.due_ms <= :now_ms
   AND NOT EXISTS (SELECT 1 FROM owed p
                    WHERE p.message = o.message AND p.kind = o.kind AND p.tries > 0)
 LIMIT :most;

-- name: owed_any
-- Whether a sweep would find anything; thresholds: [] or milliseconds, ascending.
SELECT EXISTS (SELECT 1 FROM owed WHERE due_ms <= :now_ms)
    OR EXISTS (SELECT 1 FROM owed WHERE due_ms > :now_ms + 28800000)
    OR EXISTS (SELECT 1 FROM json_each(:thresholds) t CROSS JOIN message m
                WHERE m.finished_ms IS NULL AND m.delays_told = t.key
                  AND m.delay_from_ms <= :now_ms - t.value);

-- name: report_message
SELECT m.id, m.sender, m.message_id, m.envid, m.ret, m.created_ms, m.expires_ms, m.client,
       m.smtputf8, m.require_tls, m.requiretls, m.size, m.purged_ms
  FROM message m WHERE m.seq = :message;

-- name: report_recipients
-- Those of whom this still is the truth. What keeps a site or a domain is told of who waits there.
SELECT r.seq, r.address, r.orcpt, r.reason, r.mx, r.reply_code, r.enhanced_code, r.reply_text,
       r.last_ms, r.notify, (SELECT checksum FROM recipient WHERE seq = r.seq)
  FROM owed o CROSS JOIN recipient_now r ON r.seq = o.recipient
 WHERE o.message = :message AND o.kind = :kind
   AND CASE :kind WHEN 'failed' THEN r.status = 'failed'
                  WHEN 'relayed' THEN r.status = 'delivered'
                  ELSE r.finished_ms IS NULL AND r.status <> 'held' END
 ORDER BY o.recipient LIMIT :most;

-- name: original_chunks
-- A message's content, or its first chunk.
SELECT c.data, c.digest
  FROM message m
 CROSS JOIN content c ON c.key BETWEEN iif(m.content < 0, m.content, m.seq) * 4096
                                   AND iif(m.content < 0, m.content, m.seq) * 4096
                                       + iif(:whole, 4095, 0)
 WHERE m.seq = :message ORDER BY c.key;

-- name: reported
UPDATE recipient SET reported = :kind WHERE seq IN (SELECT value FROM json_each(:recipients));

-- name: owed_paid
DELETE FROM owed
 WHERE message = :message AND recipient IN (SELECT value FROM json_each(:recipients));

-- name: owed_of
SELECT recipient FROM owed WHERE message = :message AND kind = :kind;

-- name: owed_far
-- No wait is that long: the clock was set back.
UPDATE owed SET due_ms = :now_ms WHERE due_ms > :now_ms + 28800000;

-- name: owed_set
UPDATE owed SET tries = :tries, due_ms = :due_ms WHERE message = :message AND kind = :kind;

-- name: owed_confirmed
-- Who took them reports their delivery (RFC 3461 section 5.2.2).
DELETE FROM owed
 WHERE (message, recipient) IN (SELECT message, seq FROM recipient
                                 WHERE seq IN (SELECT value FROM json_each(:recipients)))
   AND kind = 'relayed';

-- name: unreported_since
SELECT m.id, e.detail ->> 'kind', e.detail ->> 'count', e.detail ->> 'error', e.detail ->> 'tries',
       e.detail ->> 'given_up'
  FROM event e JOIN message m ON m.seq = e.message
 WHERE e.id > :event AND e.type = 'message.unreported' ORDER BY e.id LIMIT 100;

-- name: report_event
INSERT INTO event (at_ms, type, message, detail) VALUES (:now_ms, :type, :message, :detail);

-- name: delayed_messages
-- place: how many of the engine's thresholds they were told of; before_ms: for the next one.
SELECT seq FROM message INDEXED BY message_delay
 WHERE finished_ms IS NULL AND delays_told = :place AND delay_from_ms <= :before_ms
 ORDER BY delay_from_ms LIMIT :most;

-- name: delay_told
-- As many thresholds as have passed: who was away for long hears once.
UPDATE message
   SET delays_told = (SELECT count(*) FROM json_each(:thresholds)
                       WHERE value <= :now_ms - message.delay_from_ms)
 WHERE seq IN (SELECT value FROM json_each(:messages));

-- name: owe_delays
INSERT INTO owed (message, recipient, kind)
SELECT r.message, r.seq, 'delayed'
  FROM json_each(:messages) j CROSS JOIN recipient r ON r.message = j.value
 WHERE r.wants & 2 AND r.finished_ms IS NULL AND r.state <> 'held'
    ON CONFLICT DO NOTHING;
