-- Messages and recipients of a selection: a head, fragments joined with AND, a tail. Only these
-- fixed fragments make a statement; what a caller says is always a parameter.
--
-- Sought: ids, tags, held ones, messages that are not finished; waiting ones by their address, where
-- few messages are unfinished. Everything else (sender, stream,
-- domain, address, time, final statuses) walks: find from the newest message back and stops at the
-- limit, targets in the spool's order from where the last page ended, window by window.
--
-- Where find met too little among the newest it asks indexes who may be meant by a word that few
-- messages have (few_...): candidates, each looked at as the other fragments say. Where they are too
-- many (:bound), or not all of them (few_moved), the walk goes on.

-- name: message_seq
SELECT seq FROM message WHERE id = :id;

-- name: find_head
SELECT m.seq, m.id FROM message m WHERE m.seq < :after AND m.seq >= :floor

-- name: find_recipient
EXISTS (SELECT 1 FROM recipient r WHERE r.message = m.seq

-- name: find_tail
ORDER BY m.seq DESC LIMIT :most

-- name: targets_walk
SELECT m.id, r.address, r.seq
  FROM recipient r CROSS JOIN message m ON m.seq = r.message
 WHERE r.seq > :after

-- name: targets_window
-- Of a walk: no further than that in one statement.
r.seq <= :last

-- name: next_recipient
SELECT min(seq) FROM recipient WHERE seq > :after;

-- name: targets_held
SELECT m.id, r.address, r.seq
  FROM recipient r INDEXED BY recipient_held CROSS JOIN message m ON m.seq = r.message
 WHERE r.state = 'held' AND r.seq > :after

-- name: targets_unfinished
-- By the unique index of a message's addresses, which "recipients" seeks.
SELECT m.id, r.address, r.seq
  FROM (SELECT seq FROM message INDEXED BY message_expiry WHERE finished_ms IS NULL) u
 CROSS JOIN message m ON m.seq = u.seq
 CROSS JOIN recipient r ON r.message = m.seq
 WHERE r.seq > :after

-- name: few_unfinished
SELECT count(*) FROM (SELECT 1 FROM message INDEXED BY message_expiry WHERE finished_ms IS NULL
                       LIMIT :bound);

-- name: recipient_span
-- Numbers from the first to the last: at least as many as there are.
SELECT coalesce((SELECT max(seq) FROM recipient) - (SELECT min(seq) FROM recipient) + 1, 0);

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

-- name: newest_unfinished
-- All of the index is looked at, which holds what waits and nothing else; only the newest are kept.
SELECT seq FROM message INDEXED BY message_expiry
 WHERE finished_ms IS NULL AND seq < :after ORDER BY seq DESC LIMIT :most;

-- name: few_on_lanes
-- Claimed or on the wire.
SELECT message FROM recipient INDEXED BY recipient_lane WHERE lane IS NOT NULL

-- name: few_held
SELECT message FROM recipient INDEXED BY recipient_held WHERE state = 'held'

-- name: few_deferred
-- Deferred by an attempt (not looked for where the tally knows of none); or shown so, as in the view
-- recipient_now, since their site is suspended or the DNS of their domain fails.
SELECT r.message
  FROM tally t CROSS JOIN recipient r INDEXED BY recipient_due
 WHERE t.state = 'deferred' AND t.recipients > 0
   AND r.due_ms IS NOT NULL AND r.site IS NOT NULL AND r.state = 'deferred'
 UNION ALL
SELECT r.message
  FROM tally t CROSS JOIN recipient r INDEXED BY recipient_unrouted
 WHERE t.state = 'deferred' AND t.recipients > 0
   AND r.due_ms IS NOT NULL AND r.site IS NULL AND r.state = 'deferred'
 UNION ALL
SELECT r.message
  FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now_ms) n
 CROSS JOIN site s INDEXED BY site_suspended CROSS JOIN recipient r INDEXED BY recipient_due
 WHERE s.suspended_until_ms > n.now_ms AND s.suspended_until_ms > 0
   AND r.site = s.seq AND r.priority IN (0, 1, 2) AND r.due_ms IS NOT NULL
   AND r.due_ms <= n.now_ms AND r.state = 'queued'
 UNION ALL
SELECT r.message
  FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now_ms) n
 CROSS JOIN domain d INDEXED BY domain_failing CROSS JOIN recipient r INDEXED BY recipient_unrouted
 WHERE d.result = 'temporary' AND d.retry_ms > n.now_ms
   AND r.domain = d.name AND r.site IS NULL AND r.due_ms IS NOT NULL
   AND r.due_ms <= n.now_ms AND r.state = 'queued'
 UNION ALL
SELECT r.message
  FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now_ms) n
 CROSS JOIN domain d INDEXED BY domain_failing CROSS JOIN recipient r INDEXED BY recipient_due
 WHERE d.result = 'temporary' AND d.retry_ms > n.now_ms AND d.usable_ms + 60000 <= n.now_ms
   AND d.site IS NOT NULL AND r.site = d.site AND r.priority IN (0, 1, 2) AND r.due_ms IS NOT NULL
   AND r.due_ms <= n.now_ms AND r.state = 'queued'

-- name: few_moved
-- Whether a domain whose DNS fails has led elsewhere: what waits there under an old stamp is shown
-- deferred, too, and no index tells where that is.
SELECT 1 FROM domain INDEXED BY domain_failing
 WHERE result = 'temporary' AND generation > (site IS NOT NULL)
   AND retry_ms > CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) LIMIT 1;

-- name: few_ended
-- Only a message of several recipients has one that is final before it is finished itself.
SELECT seq FROM message INDEXED BY message_body
 WHERE finished_ms IS NOT NULL AND purged_ms IS NULL
 UNION ALL
SELECT seq FROM message INDEXED BY message_purged
 WHERE finished_ms IS NOT NULL AND purged_ms IS NOT NULL
 UNION ALL
SELECT message FROM message_tally

-- name: few_tail
LIMIT :bound

-- name: by_few
m.seq IN (SELECT value FROM json_each(:few))
