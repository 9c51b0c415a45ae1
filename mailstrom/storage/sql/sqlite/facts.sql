-- What keeps recipients from being sent: the rows of one look. Everything is sought by key or index.

-- name: facts_recipients
-- targets: [[id, address or null], ...]; in their order, all of a message in that of its envelope.
WITH wanted AS MATERIALIZED (
  SELECT m.seq AS message, j.value ->> 1 AS address, j.key AS place
    FROM json_each(:targets) j CROSS JOIN message m ON m.id = j.value ->> 0),
chosen AS MATERIALIZED (
  SELECT r.seq AS recipient, place
    FROM wanted
   CROSS JOIN recipient r ON r.message = wanted.message AND r.address = wanted.address
   WHERE wanted.address IS NOT NULL
   UNION ALL
  SELECT r.seq, place
    FROM wanted CROSS JOIN recipient r ON r.message = wanted.message
   WHERE wanted.address IS NULL)
SELECT m.id, r.address, r.domain, n.status, n.reason, r.state IN ('claimed', 'sending'), r.due_ms,
       m.created_ms, m.send_ms, m.expires_ms, r.finished_ms, r.attempts, r.in_doubt, r.mx,
       r.reply_code, r.enhanced_code, r.reply_text, r.seq, r.site,
       d.name IS NOT NULL, d.result, d.error, d.expires_ms, d.retry_ms, d.router,
       r.site IS NOT NULL
         AND (d.generation IS NOT r.generation OR d.site IS NOT r.site
              OR d.usable_ms + :grace_ms <= :now_ms),
       r.lane, l.worker, w.pid, w.host, w.lock,
       iif(r.state = 'sending', s.host, NULL), iif(r.state = 'sending', s.address, NULL),
       iif(r.state = 'sending', r.opened_ms, NULL)
  FROM chosen
 CROSS JOIN recipient r ON r.seq = chosen.recipient
 CROSS JOIN message m ON m.seq = r.message
 CROSS JOIN recipient_now n ON n.seq = chosen.recipient
  LEFT JOIN domain d ON d.name = r.domain
  LEFT JOIN lane l ON l.token = r.lane
  LEFT JOIN worker w ON w.seq = l.worker
  LEFT JOIN session s ON s.id = r.session AND r.state = 'sending'
 ORDER BY chosen.place, r.seq;

-- name: facts_sites
SELECT s.seq, s.key, s.suspended_until_ms, s.suspended_by, s.suspended_reason, s.last_reply,
       s.failures, (SELECT count(*) FROM lane l WHERE l.site = s.seq),
       (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'lanes_limit'), s.lane_cap,
       s.last_success_ms = 0 OR s.failures > 0
  FROM json_each(:sites) j CROSS JOIN site s ON s.seq = j.value;

-- name: facts_ahead
-- Who is due before each of these at its site: of a higher priority, or of the same and earlier.
SELECT r.seq,
       (SELECT count(*) FROM (
         SELECT 1 FROM (SELECT 1 FROM recipient a
           WHERE a.site = r.site AND a.priority = 0 AND r.priority > 0 AND a.due_ms <= :now_ms
           LIMIT :most)
          UNION ALL
         SELECT 1 FROM (SELECT 1 FROM recipient a
           WHERE a.site = r.site AND a.priority = 1 AND r.priority > 1 AND a.due_ms <= :now_ms
           LIMIT :most)
          UNION ALL
         SELECT 1 FROM (SELECT 1 FROM recipient a
           WHERE a.site = r.site AND a.priority = r.priority AND a.due_ms IS NOT NULL
             AND (a.due_ms, a.seq) < (r.due_ms, r.seq)
           LIMIT :most)
         LIMIT :most))
  FROM json_each(:recipients) j CROSS JOIN recipient r ON r.seq = j.value
 WHERE r.site IS NOT NULL AND r.due_ms <= :now_ms;

-- name: facts_workers
SELECT w.seq, w.pid, w.host, w.state, w.heartbeat_ms, w.lock,
       (SELECT count(*) FROM lane l WHERE l.worker = w.seq)
  FROM worker w
 WHERE w.kind = 'delivery' AND w.state IN ('starting', 'ready', 'draining')
 ORDER BY w.seq;

-- name: facts_spool
SELECT (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'copied_ms'),
       (SELECT CAST(value AS TEXT) FROM meta WHERE key = 'copied_from'),
       (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'max_connections');
