-- What a client computed over a message's envelope, flags and content digests (BLAKE2b-16): damage to
-- any of them, or content that came to lie under another message's key, is seen before a byte of it
-- is on the wire. NULL where an older client enqueued it: it does not name the column.

ALTER TABLE message ADD COLUMN digest BLOB CHECK (digest IS NULL OR length(digest) = 16);

DROP VIEW enqueue;

CREATE VIEW enqueue AS
SELECT NULL AS id, NULL AS sender, NULL AS subject, NULL AS size, NULL AS content, NULL AS chunks,
       NULL AS body, NULL AS digest, NULL AS stream, NULL AS priority, NULL AS message_id,
       NULL AS idempotency_key, NULL AS idempotency_hash,
       NULL AS metadata, NULL AS tags, NULL AS on_doubt, NULL AS require_tls, NULL AS eightbit,
       NULL AS smtputf8, NULL AS created_ms, NULL AS send_ms, NULL AS expires_ms,
       NULL AS recipients, NULL AS message_digest
 WHERE 0;

-- As in 0004, and the digest.
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
  SELECT seq * 4096, NEW.body, NEW.digest
    FROM message WHERE id = NEW.id AND NEW.content IS NULL;
  DELETE FROM staged WHERE seq = -NEW.content;

  INSERT INTO tag (message, tag)
  SELECT DISTINCT m.seq, j.value
    FROM message m, json_each(NEW.tags) j WHERE m.id = NEW.id;

  INSERT INTO recipient (message, address, domain, checksum, priority, state, due_ms, site,
                         generation)
  SELECT m.seq, j.value ->> 0, j.value ->> 1, j.value ->> 2, m.priority, 'queued', NEW.send_ms,
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
