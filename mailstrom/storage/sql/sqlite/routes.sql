-- The shared MX cache and the stamping of routes on waiting recipients.

-- name: due_domains
UPDATE domain SET router = :worker
 WHERE name IN (SELECT name FROM domain
                 WHERE ready_ms <= :now_ms AND due_ms IS NOT NULL AND router IS NULL
                 ORDER BY ready_ms LIMIT :most)
   AND EXISTS (SELECT 1 FROM worker
                WHERE seq = :worker AND state IN ('starting', 'ready', 'draining'))
RETURNING name, result, hosts, expires_ms, error, failures;

-- name: site_put
INSERT INTO site (key, provider, hosts, next_due_ms) VALUES (:key, :provider, :hosts, :now_ms)
    ON CONFLICT (key) DO UPDATE SET hosts = excluded.hosts, provider = excluded.provider
RETURNING seq;

-- name: domain_put
-- The generation moves when the domain moves to another site: older stamps are then stale.
UPDATE domain
   SET result = :result, generation = generation + (site IS NOT :site), site = :site,
       hosts = :hosts, resolved_ms = :now_ms, expires_ms = :expires_ms, error = :error,
       failures = CASE WHEN :result = 'temporary' THEN failures + 1 ELSE 0 END,
       retry_ms = CASE WHEN :result = 'temporary' THEN :expires_ms ELSE 0 END
 WHERE name = :name AND router IS :worker
RETURNING generation;

-- name: stamp
UPDATE recipient SET site = :site, generation = :generation
 WHERE seq IN (SELECT seq FROM recipient
                WHERE domain = :name AND due_ms IS NOT NULL AND site IS NULL
                ORDER BY due_ms LIMIT :most)
RETURNING seq;

-- name: unrouted
SELECT seq FROM recipient
 WHERE domain = :name AND due_ms IS NOT NULL AND site IS NULL ORDER BY due_ms LIMIT :most;

-- name: fail_unrouted
UPDATE recipient
   SET state = 'failed', reason = :reason, due_ms = NULL, finished_ms = :now_ms,
       attempts = attempts + 1, last_ms = :now_ms, mx = NULL, reply_code = :code,
       enhanced_code = :enhanced, reply_text = :text
 WHERE seq IN (SELECT value FROM json_each(:recipients)) AND due_ms IS NOT NULL AND site IS NULL
RETURNING seq;

-- name: domain_done
-- What still waits keeps the domain due; the router gives it back.
UPDATE domain
   SET router = NULL,
       due_ms = (SELECT min(due_ms) FROM recipient
                  WHERE domain = :name AND due_ms IS NOT NULL AND site IS NULL)
 WHERE name = :name;

-- name: give_back
UPDATE domain SET router = NULL, retry_ms = :retry_ms WHERE name = :name AND router = :worker;

-- name: expire_routes
UPDATE domain SET expires_ms = 0, retry_ms = 0 WHERE expires_ms > 0 OR retry_ms > 0;

-- name: route_event
INSERT INTO event (at_ms, type, detail)
VALUES (:now_ms, 'mx.resolved',
        json_object('domain', :name, 'result', :result, 'site', :site, 'error', :error));
