-- Events, what was completed lately, counters, suppressions.

-- name: events_after
SELECT id, at_ms, type, message_id, recipient, detail FROM events
 WHERE id > :after ORDER BY id LIMIT :most;

-- name: events_after_of
SELECT id, at_ms, type, message_id, recipient, detail FROM events
 WHERE id > :after AND type IN (SELECT value FROM json_each(:types)) ORDER BY id LIMIT :most;

-- name: recent_completed
-- Messages by the last event that made one of their recipients final, behind the cursor. A late
-- verdict that changed nothing is marked (counted: 0) and tells of no completion.
SELECT e.id, m.id
  FROM event e CROSS JOIN message m ON m.seq = e.message
 WHERE e.id > :after AND e.message IS NOT NULL AND m.finished_ms IS NOT NULL
   AND e.type IN ('recipient.delivered', 'recipient.failed', 'message.cancelled')
   AND e.detail ->> 'counted' IS NOT 0
   AND NOT EXISTS (SELECT 1 FROM event l
                    WHERE l.message = e.message AND l.id > e.id
                      AND l.type IN ('recipient.delivered', 'recipient.failed',
                                     'message.cancelled')
                      AND l.detail ->> 'counted' IS NOT 0)
 ORDER BY e.id LIMIT :most;

-- name: recent_oldest
-- Of messages that are not finished the oldest, as far as they are among the oldest of all.
SELECT id FROM message
 WHERE seq < (SELECT min(seq) FROM message) + :near AND finished_ms IS NULL
 ORDER BY seq LIMIT :most;

-- name: recent_incomplete
-- The same wherever they are: all that are not finished are looked at, but nothing that is.
SELECT id FROM message
 WHERE seq IN (SELECT seq FROM message INDEXED BY message_expiry WHERE finished_ms IS NULL
                ORDER BY seq LIMIT :most)
 ORDER BY seq;

-- name: recent_move
-- Only from where it was read: of two clients that look at the same time one looks again.
INSERT INTO meta (key, value) SELECT 'recent_event', :top
 WHERE coalesce((SELECT value FROM meta WHERE key = 'recent_event'), 0) = :after
    ON CONFLICT (key) DO UPDATE SET value = excluded.value
RETURNING value;

-- name: waiting
-- As the view queue_counts, without its messages, each of which must be looked for: what is shown
-- deferred since its site is suspended, or the DNS of its domain fails, is counted within an index.
WITH clock_now AS (
  SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now_ms),
failing AS (
  SELECT d.name, d.site, d.usable_ms + 60000 <= n.now_ms AS outdated
    FROM clock_now n CROSS JOIN domain d INDEXED BY domain_failing
   WHERE d.result = 'temporary' AND d.retry_ms > n.now_ms),
shown AS MATERIALIZED (
  SELECT (SELECT count(*)
            FROM clock_now n CROSS JOIN site s INDEXED BY site_suspended CROSS JOIN recipient r
           WHERE s.suspended_until_ms > n.now_ms AND s.suspended_until_ms > 0
             AND r.site = s.seq AND r.priority IN (0, 1, 2) AND r.due_ms IS NOT NULL
             AND r.due_ms <= n.now_ms AND r.state = 'queued')
       + (SELECT count(*)
            FROM clock_now n CROSS JOIN failing f CROSS JOIN recipient r
           WHERE r.domain = f.name AND r.site IS NULL AND r.due_ms IS NOT NULL
             AND r.due_ms <= n.now_ms AND r.state = 'queued')
       + (SELECT count(*)
            FROM clock_now n
           CROSS JOIN (SELECT DISTINCT site FROM failing WHERE outdated AND site IS NOT NULL) f
           CROSS JOIN site s CROSS JOIN recipient r CROSS JOIN domain d
           WHERE s.seq = f.site AND s.suspended_until_ms <= n.now_ms
             AND r.site = s.seq AND r.priority IN (0, 1, 2) AND r.due_ms IS NOT NULL
             AND r.due_ms <= n.now_ms AND r.state = 'queued'
             AND d.name = r.domain AND d.result = 'temporary' AND d.retry_ms > n.now_ms
             AND d.usable_ms + 60000 <= n.now_ms) AS amount),
taken AS MATERIALIZED (
  SELECT count(*) FILTER (WHERE state = 'sending') AS sending,
         count(*) FILTER (WHERE state = 'claimed' AND deferrals = 0 AND NOT in_doubt) AS queued,
         count(*) FILTER (WHERE state = 'claimed' AND (deferrals > 0 OR in_doubt)) AS deferred
    FROM recipient WHERE lane IS NOT NULL)
SELECT t.state,
       t.recipients
         + CASE t.state
             WHEN 'queued' THEN taken.queued - shown.amount
                  + coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'recipient'), 0)
             WHEN 'deferred' THEN taken.deferred + shown.amount
             ELSE 0 END
  FROM tally t, shown, taken
 UNION ALL
SELECT 'sending', sending FROM taken;

-- name: finished_lately
SELECT status, sum(recipients) FROM hour_stat
 WHERE hour_ms > :now_ms - 86400000 AND status IN ('delivered', 'failed', 'cancelled')
 GROUP BY status;

-- name: oldest_at_sites
-- Three seeks a site. The first column is not above the second, unless rows wait for a route to be
-- looked up again (oldest_refreshed): who reads in this order may stop where it passes the least.
SELECT s.ready_ms,
       (SELECT min((SELECT min(r.due_ms) FROM recipient r
                     WHERE r.site = s.seq AND r.priority = p.column1 AND r.due_ms IS NOT NULL))
          FROM (VALUES (0), (1), (2)) p)
  FROM site s
 WHERE s.ready_ms <= :now_ms
   AND NOT (s.suspended_until_ms > s.next_due_ms OR s.paused_ms > s.next_due_ms)
 ORDER BY s.ready_ms;

-- name: oldest_at_kept_sites
-- As oldest_at_sites.
SELECT s.next_due_ms,
       (SELECT min((SELECT min(r.due_ms) FROM recipient r
                     WHERE r.site = s.seq AND r.priority = p.column1 AND r.due_ms IS NOT NULL))
          FROM (VALUES (0), (1), (2)) p)
  FROM site s INDEXED BY site_kept
 WHERE (s.suspended_until_ms > s.next_due_ms OR s.paused_ms > s.next_due_ms)
   AND s.next_due_ms <= :now_ms
 ORDER BY s.next_due_ms;

-- name: oldest_unrouted
-- As oldest_at_sites.
SELECT d.due_ms, (SELECT min(r.due_ms) FROM recipient r
                   WHERE r.domain = d.name AND r.due_ms IS NOT NULL AND r.site IS NULL)
  FROM domain d INDEXED BY domain_due
 WHERE d.due_ms IS NOT NULL AND d.due_ms <= :now_ms
 ORDER BY d.due_ms;

-- name: oldest_refreshed
-- All of them: these sites may sleep past what is due.
SELECT NULL, (SELECT min((SELECT min(r.due_ms) FROM recipient r
                           WHERE r.site = d.site AND r.priority = p.column1
                             AND r.due_ms IS NOT NULL))
                FROM (VALUES (0), (1), (2)) p)
  FROM (SELECT DISTINCT site FROM domain INDEXED BY domain_refreshed
         WHERE due_ms IS NOT NULL AND site IS NOT NULL) d;

-- name: engine_now
SELECT (SELECT count(*) FROM site
         WHERE suspended_until_ms > :now_ms AND suspended_until_ms > 0),
       (SELECT count(*) FROM worker
         WHERE kind = 'delivery' AND state IN ('starting', 'ready', 'draining')),
       EXISTS (SELECT 1 FROM meta WHERE key = 'copied_ms');

-- name: suppressions_all
SELECT address, scope, reason, created_ms, expires_ms, evidence FROM suppressions
 ORDER BY address, scope LIMIT :most;

-- name: suppressions_of
SELECT address, scope, reason, created_ms, expires_ms, evidence FROM suppressions
 WHERE address IN (SELECT value FROM json_each(:addresses)) ORDER BY address, scope LIMIT :most;
