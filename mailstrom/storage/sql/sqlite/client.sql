-- What the thin client runs.

-- name: enqueue
-- One statement, one step: see the view's trigger in the schema.
INSERT INTO enqueue (id, sender, subject, size, content, chunks, body, digest, stream, priority,
                     message_id, idempotency_key, idempotency_hash, metadata,
                     tags, on_doubt, require_tls, eightbit, smtputf8, created_ms, send_ms,
                     expires_ms, recipients)
VALUES (:id, :sender, :subject, :size, :content, :chunks, :body, :digest, :stream, :priority,
        :message_id, :idempotency_key, :idempotency_hash, :metadata,
        :tags, :on_doubt, :require_tls, :eightbit, :smtputf8, :created_ms, :send_ms,
        :expires_ms, :recipients);

-- name: idempotency_get
SELECT id, hash FROM idempotency WHERE key = :key;

-- name: stage_begin
INSERT INTO staged (created_ms) VALUES (:now_ms) RETURNING seq;

-- name: stage_chunk
INSERT INTO content (key, data, digest) VALUES (:key, :data, :digest);

-- name: known_ids
SELECT id FROM message WHERE id IN (SELECT value FROM json_each(:ids));

-- name: status_messages
SELECT id, status, sender, subject, size, created_ms, send_ms, expires_ms, finished_ms, tags,
       metadata
  FROM messages WHERE id IN (SELECT value FROM json_each(:ids));

-- name: status_recipients
-- In the order of the envelope.
SELECT m.id, r.address, r.status, r.reason, r.attempts, r.next_attempt_ms, r.last_ms, r.mx,
       r.reply_code, r.enhanced_code, r.reply_text, r.tls, r.in_doubt
  FROM message m JOIN recipient_now r ON r.message = m.seq
 WHERE m.id IN (SELECT value FROM json_each(:ids))
 ORDER BY r.seq;

-- name: content_of
SELECT coalesce(content, seq), chunks, purged_ms FROM message WHERE id = :id;

-- name: content_chunks
SELECT data, digest FROM content WHERE key BETWEEN :first AND :last ORDER BY key;

-- name: cancel
-- Never a recipient that is on the wire: its truth is yet to come.
UPDATE recipient
   SET state = 'cancelled', reason = 'user', due_ms = NULL, lane = NULL, finished_ms = :now_ms
 WHERE message IN (SELECT seq FROM message WHERE id IN (SELECT value FROM json_each(:ids)))
   AND (:address IS NULL OR address = :address)
   AND state IN ('queued', 'deferred', 'held', 'claimed')
RETURNING seq;

-- name: retry_sites
-- Whoever says "retry" wants it tried now: the pause of the site ends, one canary lane finds out.
UPDATE site SET suspended_until_ms = :now_ms
 WHERE suspended_until_ms > :now_ms
   AND seq IN (SELECT r.site FROM recipient r JOIN message m ON m.seq = r.message
                WHERE m.id IN (SELECT value FROM json_each(:ids)) AND m.purged_ms IS NULL
                  AND (:address IS NULL OR r.address = :address)
                  AND r.state IN ('queued', 'deferred') AND m.send_ms <= :now_ms);

-- name: retry_domains
UPDATE domain SET retry_ms = :now_ms
 WHERE retry_ms > :now_ms AND router IS NULL
   AND name IN (SELECT r.domain FROM recipient r JOIN message m ON m.seq = r.message
                 WHERE m.id IN (SELECT value FROM json_each(:ids)) AND m.purged_ms IS NULL
                   AND (:address IS NULL OR r.address = :address)
                   AND r.state IN ('queued', 'deferred') AND m.send_ms <= :now_ms);

-- name: retry
-- Deferred ones become due now, failed ones are reopened; the route is looked at anew. Queued ones
-- stay what they are and wait no longer, unless their message is not to be sent yet. What is held
-- needs a decision, and what was cancelled is over.
UPDATE recipient
   SET state = 'queued', due_ms = min(coalesce(due_ms, :now_ms), :now_ms), reason = NULL,
       deferrals = CASE WHEN finished_ms IS NULL THEN deferrals ELSE 0 END,
       doubts = CASE WHEN finished_ms IS NULL THEN doubts ELSE 0 END,
       reopened_ms = CASE WHEN finished_ms IS NULL THEN reopened_ms ELSE :now_ms END,
       finished_ms = NULL, site = NULL
 WHERE message IN (SELECT seq FROM message
                    WHERE id IN (SELECT value FROM json_each(:ids)) AND purged_ms IS NULL)
   AND (:address IS NULL OR address = :address)
   AND (state IN ('deferred', 'failed')
        OR (state = 'queued'
            AND (SELECT send_ms FROM message WHERE seq = recipient.message) <= :now_ms))
RETURNING seq;

-- name: reopen_messages
-- A message with a reopened recipient lives at least another day.
UPDATE message
   SET finished_ms = NULL, expires_ms = max(expires_ms, :now_ms + 86400000)
 WHERE seq IN (SELECT message FROM recipient
                WHERE seq IN (SELECT value FROM json_each(:recipients))
                  AND reopened_ms = :now_ms);

-- name: domains_due
-- Their recipients wait for the router; the cache row may be gone.
INSERT INTO domain (name, due_ms)
SELECT domain, min(due_ms) FROM recipient
 WHERE seq IN (SELECT value FROM json_each(:recipients)) AND due_ms IS NOT NULL AND site IS NULL
 GROUP BY domain
    ON CONFLICT (name) DO UPDATE SET due_ms = excluded.due_ms
 WHERE due_ms IS NULL OR due_ms > excluded.due_ms;

-- name: cancel_events
INSERT INTO event (at_ms, type, message, recipient)
SELECT :now_ms, 'message.cancelled', r.message, r.seq
  FROM recipient r WHERE r.seq IN (SELECT value FROM json_each(:recipients));
