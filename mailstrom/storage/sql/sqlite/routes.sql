-- The shared MX cache and the stamping of routes on waiting recipients.

-- name: domain_due
-- Whether due_domains would find one.
SELECT 1 FROM domain INDEXED BY domain_ready
 WHERE ready_ms <= :now_ms AND due_ms IS NOT NULL AND router IS NULL LIMIT 1;

-- name: due_domains
-- Texts as bytes: damage may have made them none.
UPDATE domain SET router = :worker
 WHERE name IN (SELECT name FROM domain
                 WHERE ready_ms <= :now_ms AND due_ms IS NOT NULL AND router IS NULL
                 ORDER BY ready_ms LIMIT :most)
   AND EXISTS (SELECT 1 FROM worker
                WHERE seq = :worker AND state IN ('starting', 'ready', 'draining'))
RETURNING CAST(name AS BLOB), CAST(result AS BLOB), CAST(hosts AS BLOB), expires_ms,
          CAST(error AS BLOB), failures;

-- name: domain_get
SELECT name, router, CAST(result AS BLOB), site, generation, expires_ms, usable_ms
  FROM domain WHERE name IN (SELECT value FROM json_each(:names));

-- name: site_put
-- Rows: [key, provider, hosts]; of two for one site the later stands.
INSERT INTO site (key, provider, hosts, next_due_ms, used_ms)
SELECT value ->> 0, value ->> 1, value ->> 2, :now_ms, :now_ms FROM json_each(:rows)
 WHERE true ORDER BY key
    ON CONFLICT (key) DO UPDATE SET hosts = excluded.hosts, provider = excluded.provider,
                                    used_ms = excluded.used_ms
RETURNING key, seq;

-- name: domain_put
-- The generation moves when the domain moves to another site: older stamps are then stale.
-- Rows: [name, result, site, hosts, expires_ms, error].
UPDATE domain
   SET result = j.result, generation = generation + (domain.site IS NOT j.site), site = j.site,
       hosts = j.hosts, resolved_ms = :now_ms, expires_ms = j.expires_ms,
       usable_ms = CASE WHEN j.site IS NULL THEN 0 ELSE j.expires_ms END,
       error = j.error, failures = 0, retry_ms = 0
  FROM (SELECT value ->> 0 AS name, value ->> 1 AS result, value ->> 2 AS site,
               value ->> 3 AS hosts, value ->> 4 AS expires_ms, value ->> 5 AS error
          FROM json_each(:rows)) j
 WHERE domain.name = j.name
RETURNING name, generation;

-- name: domain_failing
-- DNS trouble says nothing about where the domain leads: its stamps stay as they are.
UPDATE domain
   SET result = 'temporary', resolved_ms = :now_ms, expires_ms = :expires_ms, error = :error,
       failures = failures + 1, retry_ms = :expires_ms
 WHERE name = :name;

-- name: wake_sites
-- Rows were passed over there while the domain's route was too old; how long they are due already is
-- the site's place in the line.
UPDATE site SET next_due_ms = min(next_due_ms, :now_ms,
         coalesce((SELECT min(due_ms) FROM recipient
                    WHERE recipient.site = site.seq AND priority = 0 AND due_ms IS NOT NULL), :now_ms),
         coalesce((SELECT min(due_ms) FROM recipient
                    WHERE recipient.site = site.seq AND priority = 1 AND due_ms IS NOT NULL), :now_ms),
         coalesce((SELECT min(due_ms) FROM recipient
                    WHERE recipient.site = site.seq AND priority = 2 AND due_ms IS NOT NULL), :now_ms)),
                paused_ms = min(paused_ms, :now_ms)
 WHERE seq IN (SELECT value FROM json_each(:sites));

-- name: leave_site
-- Rows of a domain that moved away are there; a suspension must not hold them.
UPDATE site SET next_due_ms = min(next_due_ms, :now_ms,
         coalesce((SELECT min(due_ms) FROM recipient
                    WHERE site = :site AND priority = 0 AND due_ms IS NOT NULL), :now_ms),
         coalesce((SELECT min(due_ms) FROM recipient
                    WHERE site = :site AND priority = 1 AND due_ms IS NOT NULL), :now_ms),
         coalesce((SELECT min(due_ms) FROM recipient
                    WHERE site = :site AND priority = 2 AND due_ms IS NOT NULL), :now_ms)),
                paused_ms = min(paused_ms, :now_ms),
                suspended_until_ms = min(suspended_until_ms, :now_ms), used_ms = :now_ms
 WHERE seq = :site;

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
-- What still waits keeps the domain due; the router gives it back. While its DNS fails it also
-- stays due as long as its site has waiting rows: some of them may be its own.
UPDATE domain
   SET router = NULL,
       due_ms = coalesce(
         (SELECT min(recipient.due_ms) FROM recipient
           WHERE recipient.domain = domain.name AND recipient.due_ms IS NOT NULL AND recipient.site IS NULL),
         CASE WHEN result = 'temporary'
                   AND EXISTS (SELECT 1 FROM recipient r
                                WHERE r.site = domain.site AND r.due_ms IS NOT NULL)
              THEN due_ms END)
 WHERE name IN (SELECT value FROM json_each(:names));

-- name: domain_release
UPDATE domain SET router = NULL WHERE name = :name;

-- name: give_back
-- Rows: [name, retry_ms].
UPDATE domain SET router = NULL, retry_ms = j.retry_ms
  FROM (SELECT value ->> 0 AS name, value ->> 1 AS retry_ms FROM json_each(:rows)) j
 WHERE domain.name = j.name AND router = :worker;

-- name: expire_routes
-- Names in hexadecimal digits.
UPDATE domain SET expires_ms = 0, usable_ms = 0, retry_ms = 0
 WHERE name > CAST(unhex(:after) AS TEXT) AND name <= CAST(unhex(:until) AS TEXT)
   AND (expires_ms > 0 OR usable_ms > 0 OR retry_ms > 0);

-- name: free_sites
-- Where these domains lead is looked up anew: a suspension of where they led must not hold their mail.
UPDATE site SET suspended_until_ms = 0
 WHERE suspended_until_ms > 0
   AND seq IN (SELECT site FROM domain
                WHERE name > CAST(unhex(:after) AS TEXT) AND name <= CAST(unhex(:until) AS TEXT));

-- name: expire_waiting
-- Some domains of these recipients are looked up before their answer is used again: any answer writes
-- their site anew. One whose DNS fails is looked up as it is, once its pause is over.
UPDATE domain SET expires_ms = 0
 WHERE name IN (SELECT name FROM domain
                 WHERE name IN (SELECT domain FROM recipient
                                 WHERE seq IN (SELECT value FROM json_each(:recipients)))
                   AND expires_ms > 0 AND result IS NOT 'temporary' LIMIT :most);

-- name: waiting_at
SELECT seq FROM recipient WHERE site = :site AND due_ms IS NOT NULL LIMIT :most;

-- name: route_event
-- Rows: [name, result, site, error].
INSERT INTO event (at_ms, type, detail)
SELECT :now_ms, 'mx.resolved',
       json_object('domain', value ->> 0, 'result', value ->> 1, 'site', value ->> 2,
                   'error', value ->> 3)
  FROM json_each(:rows) ORDER BY key;
