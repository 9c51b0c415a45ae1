-- What the thin client runs: enqueue, statuses, content.

-- name: enqueue
-- One statement, one step: see the view's trigger in the schema. The row of marks is repeated for
-- many messages (inserting.py); a row without an id is none.
INSERT INTO enqueue (id, sender, subject, size, content, chunks, body, digest, stream, priority,
                     message_id, idempotency_key, idempotency_hash, metadata,
                     tags, on_doubt, require_tls, eightbit, smtputf8, created_ms, send_ms,
                     expires_ms, recipients, message_digest, origin, client, ret, envid, reports,
                     notices, priority_wire, requiretls)
SELECT * FROM (VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)) WHERE column1 IS NOT NULL;

-- name: idempotency_get
SELECT id, hash FROM idempotency WHERE key = :key AND expires_ms > :since_ms;

-- name: stage_begin
INSERT INTO staged (created_ms) VALUES (:now_ms) RETURNING seq;

-- name: stage_chunk
INSERT INTO content (key, data, digest) VALUES (:key, :data, :digest);

-- name: unstage_content
-- Only what belongs to no message: enqueue deletes the row of what it takes.
DELETE FROM content
 WHERE key IN (SELECT key FROM content
                WHERE key BETWEEN -:seq * 4096 AND -:seq * 4096 + 4095
                  AND EXISTS (SELECT 1 FROM staged WHERE seq = :seq AND created_ms = :staged_ms)
                LIMIT :most)
RETURNING key;

-- name: unstage
DELETE FROM staged WHERE seq = :seq AND created_ms = :staged_ms;

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
SELECT iif(content < 0, content, seq), purged_ms, digest, require_tls, on_doubt, id, sender,
       message_id, size, chunks, eightbit, smtputf8, reports, ret, envid, priority_wire,
       requiretls
  FROM message WHERE id = :id;

-- name: content_chunks
SELECT data, digest FROM content
 WHERE key BETWEEN :content * 4096 AND :content * 4096 + 4095 ORDER BY key;
