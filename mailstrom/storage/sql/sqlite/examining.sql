-- What a look from outside asks of the rows (examining); nothing here writes.

-- name: examine_workers
SELECT w.seq, w.kind, w.pid, w.host, w.boot, w.lock, w.state, w.started_ms, w.heartbeat_ms,
       w.sessions, w.restarts,
       (SELECT count(*) FROM lane l WHERE l.worker = w.seq),
       (SELECT count(*) FROM recipient r WHERE r.lane IN (SELECT token FROM lane
                                                           WHERE worker = w.seq))
  FROM worker w WHERE w.state IN ('starting', 'ready', 'draining') ORDER BY w.seq LIMIT 1000;

-- name: examine_lost
SELECT count(*) FROM worker WHERE state = 'lost' AND heartbeat_ms > :since_ms;

-- name: examine_suspended
-- The fullest first; of a site with a deep queue no more is counted than a person reads.
SELECT s.key, s.suspended_until_ms, s.suspended_by, s.suspended_reason, s.last_reply, s.failures,
       s.last_success_ms,
       (SELECT count(*) FROM (SELECT 1 FROM recipient r
                               WHERE r.site = s.seq AND r.priority IN (0, 1, 2)
                                 AND r.due_ms IS NOT NULL LIMIT 100000)) AS waiting
  FROM (SELECT * FROM site INDEXED BY site_suspended
         WHERE suspended_until_ms > 0 AND suspended_until_ms > :now_ms LIMIT 2000) s
 ORDER BY waiting DESC, s.key LIMIT :most;

-- name: examine_success
SELECT coalesce(max(last_success_ms), 0) FROM site;

-- name: examine_held
SELECT reason, count(*) FROM recipient WHERE state = 'held' GROUP BY reason;

-- name: examine_failing
SELECT count(*), min(name) FROM domain INDEXED BY domain_failing
 WHERE result = 'temporary' AND retry_ms > :now_ms;

-- name: examine_failure
SELECT name, coalesce(error, '') FROM domain WHERE name = :name;

-- name: examine_oldest_sites
-- As oldest_at_sites, with the site and its connections.
SELECT s.ready_ms,
       (SELECT min((SELECT min(r.due_ms) FROM recipient r
                     WHERE r.site = s.seq AND r.priority = p.column1 AND r.due_ms IS NOT NULL))
          FROM (VALUES (0), (1), (2)) p),
       s.key, (SELECT count(*) FROM lane l WHERE l.site = s.seq),
       (SELECT min(CAST(value AS INTEGER), coalesce(s.lane_cap, CAST(value AS INTEGER)))
          FROM meta WHERE key = 'lanes_limit')
  FROM site s
 WHERE s.ready_ms <= :now_ms
   AND NOT (s.suspended_until_ms > s.next_due_ms OR s.paused_ms > s.next_due_ms)
 ORDER BY s.ready_ms;

-- name: examine_oldest_domains
-- What waits for a first route of a domain whose DNS is not known to fail.
SELECT d.due_ms, (SELECT min(r.due_ms) FROM recipient r
                   WHERE r.domain = d.name AND r.due_ms IS NOT NULL AND r.site IS NULL),
       d.name, 0, NULL
  FROM domain d INDEXED BY domain_due
 WHERE d.due_ms IS NOT NULL AND d.due_ms <= :now_ms AND d.retry_ms <= :now_ms
 ORDER BY d.due_ms;

-- name: examine_unreported
-- Recipients of whom a report was put off, and why the last one was.
SELECT count(*),
       (SELECT detail ->> 'error' FROM event
         WHERE type = 'message.unreported'
           AND id > (SELECT coalesce(max(id), 0) FROM event) - 10000
         ORDER BY id DESC LIMIT 1)
  FROM owed o
 WHERE o.due_ms > 0
   AND EXISTS (SELECT 1 FROM event e
                WHERE e.message = o.message AND e.type = 'message.unreported');

-- name: examine_jumps
SELECT at_ms, amount_ms FROM clock_jump WHERE amount_ms NOT IN (-1, at_ms)
 ORDER BY seq DESC LIMIT 20;

-- name: examine_copied_from
SELECT CAST(value AS TEXT) FROM meta WHERE key = 'copied_from';
