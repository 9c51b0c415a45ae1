-- What people may change. Each change asks for the recipients that it touches first, in the
-- transaction that then changes them by number; what that is is told once, by the fragments touches_*.

-- name: change_targets
-- targets: [[id, address or null], ...]; whoever they are, whatever their state.
SELECT o.seq
  FROM json_each(:targets) j
  CROSS JOIN message m ON m.id = j.value ->> 0
  CROSS JOIN recipient o ON o.message = m.seq
 WHERE j.value ->> 1 IS NULL
 UNION
SELECT o.seq
  FROM json_each(:targets) j
  CROSS JOIN message m ON m.id = j.value ->> 0
  CROSS JOIN recipient o ON o.message = m.seq AND o.address = j.value ->> 1
 ORDER BY 1;

-- name: change_those
-- recipients: some of change_targets; one of touches_* follows.
SELECT r.seq
  FROM json_each(:recipients) j
  CROSS JOIN recipient r ON r.seq = j.value
  CROSS JOIN message m ON m.seq = r.message
 WHERE

-- name: touches_cancel
-- Never a recipient that is on the wire: its truth is yet to come. One that was claimed before the
-- machine was booted may be: its open can be lost with the page cache. The lapse marks it first.
r.state IN ('queued', 'deferred', 'held')
OR (r.state = 'claimed'
    AND (:boot IS NULL OR EXISTS (SELECT 1 FROM lane l JOIN worker w ON w.seq = l.worker
                                   WHERE l.token = r.lane AND w.boot = :boot AND w.boot <> '')))

-- name: touches_hold
-- Claimed ones as in touches_cancel.
r.state IN ('queued', 'deferred')
OR (r.state = 'claimed'
    AND (:boot IS NULL OR EXISTS (SELECT 1 FROM lane l JOIN worker w ON w.seq = l.worker
                                   WHERE l.token = r.lane AND w.boot = :boot AND w.boot <> '')))

-- name: touches_release
-- What may have been delivered needs another decision (resolve).
r.state = 'held' AND r.reason IN ('user', 'poison')

-- name: touches_retry
-- Not a way round send_at. What is held needs a decision, what was cancelled is over, and without
-- its body a message cannot be sent again.
m.purged_ms IS NULL
AND (r.state IN ('deferred', 'failed') OR (r.state = 'queued' AND m.send_ms <= :now_ms))

-- name: touches_resolve
r.state = 'held' AND r.reason = 'in_doubt'

-- name: cancel
UPDATE recipient
   SET state = 'cancelled', reason = 'user', due_ms = NULL, lane = NULL, finished_ms = :now_ms
 WHERE seq IN (SELECT value FROM json_each(:recipients));

-- name: hold
-- A claimed one is taken from its lane, whose open is then refused.
UPDATE recipient
   SET state = 'held', reason = 'user', due_ms = NULL, lane = NULL
 WHERE seq IN (SELECT value FROM json_each(:recipients));

-- name: release
-- Due again, and the route is looked at anew: a held row's site may be gone. Losses in a row stay
-- counted, so that what killed its workers is held again by the next loss.
UPDATE recipient
   SET state = 'queued', reason = NULL, site = NULL,
       due_ms = max(:now_ms, (SELECT send_ms FROM message WHERE seq = recipient.message))
 WHERE seq IN (SELECT value FROM json_each(:recipients));

-- name: retry_sites
-- Whoever says "retry" wants it tried now: the pause of the site ends, one canary lane finds out.
UPDATE site SET suspended_until_ms = min(suspended_until_ms, :now_ms),
                paused_ms = min(paused_ms, :now_ms)
 WHERE (suspended_until_ms > :now_ms OR paused_ms > :now_ms)
   AND seq IN (SELECT r.site FROM recipient r
                WHERE r.seq IN (SELECT value FROM json_each(:recipients))
                  AND r.state IN ('queued', 'deferred'));

-- name: retry_domains
UPDATE domain SET retry_ms = :now_ms
 WHERE retry_ms > :now_ms AND router IS NULL
   AND name IN (SELECT r.domain FROM recipient r
                 WHERE r.seq IN (SELECT value FROM json_each(:recipients))
                   AND r.state IN ('queued', 'deferred'));

-- name: retry
-- Deferred ones become due now, failed ones are reopened; the route is looked at anew. Queued ones
-- stay what they are and wait no longer.
UPDATE recipient
   SET state = 'queued', reason = NULL,
       due_ms = min(coalesce(due_ms, 253402300799000),
                    max(:now_ms, (SELECT send_ms FROM message WHERE seq = recipient.message))),
       deferrals = CASE WHEN finished_ms IS NULL THEN deferrals ELSE 0 END,
       doubts = CASE WHEN finished_ms IS NULL THEN doubts ELSE 0 END,
       reopened_ms = CASE WHEN finished_ms IS NULL THEN reopened_ms ELSE :now_ms END,
       reported = CASE WHEN finished_ms IS NULL THEN reported END,
       finished_ms = NULL, site = NULL
 WHERE seq IN (SELECT value FROM json_each(:recipients));

-- name: reopen_messages
-- A message with a reopened recipient lives at least another day.
UPDATE message
   SET finished_ms = NULL, expires_ms = max(expires_ms, :now_ms + 86400000),
       delay_from_ms = iif(delay_from_ms IS NULL, NULL, :now_ms), delays_told = 0
 WHERE seq IN (SELECT message FROM recipient
                WHERE seq IN (SELECT value FROM json_each(:recipients))
                  AND reopened_ms = :now_ms);

-- name: resolve_delivered
-- That it was in doubt stays on record.
UPDATE recipient SET state = 'delivered', reason = NULL, finished_ms = :now_ms
 WHERE seq IN (SELECT value FROM json_each(:recipients));

-- name: resolve_failed
UPDATE recipient SET state = 'failed', finished_ms = :now_ms
 WHERE seq IN (SELECT value FROM json_each(:recipients));

-- name: domains_due
-- Their recipients wait for the router; the cache row may be gone.
INSERT INTO domain (name, due_ms)
SELECT domain, min(due_ms) FROM recipient
 WHERE seq IN (SELECT value FROM json_each(:recipients)) AND due_ms IS NOT NULL AND site IS NULL
 GROUP BY domain
    ON CONFLICT (name) DO UPDATE SET due_ms = excluded.due_ms
 WHERE due_ms IS NULL OR due_ms > excluded.due_ms;

-- name: change_events
INSERT INTO event (at_ms, type, message, recipient, detail)
SELECT :now_ms, :type, r.message, r.seq, :detail
  FROM recipient r WHERE r.seq IN (SELECT value FROM json_each(:recipients)) ORDER BY r.seq;
