-- Messages and recipients of a selection: a head, fragments joined with AND, a tail. Only these
-- fixed fragments make a statement; what a caller says is always a parameter.
--
-- Sought: ids, tags, held ones, messages that are not finished. Everything else (sender, stream,
-- domain, address, time, final statuses) walks: find from the newest message back and stops at the
-- limit, targets in the spool's order from where the last page ended.

-- name: message_seq
SELECT seq FROM message WHERE id = :id;

-- name: find_head
SELECT m.seq, m.id FROM message m WHERE m.seq < :after

-- name: find_recipient
EXISTS (SELECT 1 FROM recipient r WHERE r.message = m.seq

-- name: find_tail
ORDER BY m.seq DESC LIMIT :most

-- name: targets_walk
SELECT m.id, r.address, r.seq
  FROM recipient r CROSS JOIN message m ON m.seq = r.message
 WHERE r.seq > :after

-- name: targets_held
SELECT m.id, r.address, r.seq
  FROM recipient r INDEXED BY recipient_held CROSS JOIN message m ON m.seq = r.message
 WHERE r.state = 'held' AND r.seq > :after

-- name: targets_sought
-- Recipients stand in the order of their messages.
SELECT m.id, r.address, r.seq
  FROM message m CROSS JOIN recipient r ON r.message = m.seq
 WHERE m.seq >= coalesce((SELECT message FROM recipient WHERE seq <= :after
                           ORDER BY seq DESC LIMIT 1), 0)
   AND r.seq > :after

-- name: targets_tail
ORDER BY r.seq LIMIT :most

-- name: targets_sought_tail
ORDER BY m.seq, r.seq LIMIT :most

-- name: by_ids
m.id IN (SELECT value FROM json_each(:ids))

-- name: by_tags
m.seq IN (SELECT message FROM tag WHERE tag IN (SELECT value FROM json_each(:tags)))

-- name: by_senders
m.sender IN (SELECT value FROM json_each(:senders))

-- name: by_streams
m.stream IN (SELECT value FROM json_each(:streams))

-- name: by_since_ms
m.created_ms >= :since_ms

-- name: by_until_ms
m.created_ms < :until_ms

-- name: by_unfinished
m.finished_ms IS NULL

-- name: by_holding
m.seq IN (SELECT message FROM recipient WHERE state = 'held')

-- name: by_recipients
r.address IN (SELECT value FROM json_each(:recipients))

-- name: by_domains
r.domain IN (SELECT value FROM json_each(:domains))

-- name: by_states
r.state IN (SELECT value FROM json_each(:states))

-- name: by_statuses
EXISTS (SELECT 1 FROM recipient_now n
         WHERE n.seq = r.seq AND n.status IN (SELECT value FROM json_each(:statuses)))

-- name: by_statuses_or_partial
-- "partial" is a message's word: all its recipients are final, and not the same.
(EXISTS (SELECT 1 FROM recipient_now n
          WHERE n.seq = r.seq AND n.status IN (SELECT value FROM json_each(:statuses)))
 OR (m.finished_ms IS NOT NULL
     AND (SELECT min(o.state) <> max(o.state) FROM recipient o WHERE o.message = m.seq)))

-- name: by_reasons
EXISTS (SELECT 1 FROM recipient_now n
         WHERE n.seq = r.seq AND n.reason IN (SELECT value FROM json_each(:reasons)))
