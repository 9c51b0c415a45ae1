-- What `store check` proves, section 2 of docs/design/queue.md. Each statement returns a sentence a
-- violation, which names the row; the remedies are in checking.py. Each is one statement, so one state
-- of the spool. digest_of, checksum_of, sealed and text_of are functions of that file's
-- connection.

-- name: check_orphan_recipient
SELECT 'recipient ' || r.seq || ' (' || r.address || ') belongs to no message'
  FROM recipient r LEFT JOIN message m ON m.seq = r.message WHERE m.seq IS NULL;

-- name: check_no_recipient
SELECT 'message ' || m.id || ' has no recipient'
  FROM message m WHERE NOT EXISTS (SELECT 1 FROM recipient r WHERE r.message = m.seq);

-- name: check_finished
SELECT 'message ' || m.id || ' is ' || CASE WHEN m.finished_ms IS NULL THEN 'not ' ELSE '' END
       || 'marked finished, its recipients say otherwise'
  FROM message m
 WHERE (m.finished_ms IS NOT NULL)
       <> (NOT EXISTS (SELECT 1 FROM recipient r
                        WHERE r.message = m.seq AND r.finished_ms IS NULL));

-- name: check_content
SELECT 'message ' || m.id || ' lacks content'
  FROM message m
 WHERE m.purged_ms IS NULL
   AND (SELECT count(*) FROM content c
         WHERE c.key BETWEEN iif(m.content < 0, m.content, m.seq) * 4096
                         AND iif(m.content < 0, m.content, m.seq) * 4096 + 4095) <> m.chunks;

-- name: check_lane_owner
SELECT 'recipient ' || r.address || ' of message ' || m.id || ' is held by lane ' || r.lane
       || ', which does not exist'
  FROM recipient r JOIN message m ON m.seq = r.message
 WHERE r.lane IS NOT NULL AND NOT EXISTS (SELECT 1 FROM lane l WHERE l.token = r.lane);

-- name: check_lane_worker
SELECT 'lane ' || l.token || ' belongs to worker ' || l.worker || ', which has ended'
  FROM lane l LEFT JOIN worker w ON w.seq = l.worker
 WHERE w.seq IS NULL OR w.state IN ('stopped', 'lost');

-- name: check_next_due
-- Rows whose domain is to be looked up again may be slept past: its answer wakes the site.
SELECT 'site ' || s.key || ' would sleep past recipients that are due before'
  FROM site s
 WHERE s.next_due_ms > (SELECT min(r.due_ms) FROM recipient r LEFT JOIN domain d ON d.name = r.domain
                         WHERE r.site = s.seq AND r.due_ms IS NOT NULL AND d.due_ms IS NULL);

-- name: check_unrouted
SELECT 'domain ' || r.domain || ' has unrouted recipients and is not due for routing'
  FROM recipient r LEFT JOIN domain d ON d.name = r.domain
 WHERE r.due_ms IS NOT NULL AND r.site IS NULL
   AND (d.due_ms IS NULL OR d.due_ms > r.due_ms) GROUP BY r.domain;

-- name: check_router
SELECT 'domain ' || d.name || ' is being routed by worker ' || d.router || ', which has ended'
  FROM domain d LEFT JOIN worker w ON w.seq = d.router
 WHERE d.router IS NOT NULL AND (w.seq IS NULL OR w.state IN ('stopped', 'lost'));

-- name: check_lane_site
SELECT 'recipient ' || r.address || ' of message ' || m.id || ' is held by lane ' || r.lane
       || ', which is leased for another site'
  FROM recipient r JOIN lane l ON l.token = r.lane JOIN message m ON m.seq = r.message
 WHERE l.site IS NOT r.site;

-- name: check_lane_nowhere
SELECT 'lane ' || l.token || ' is leased for a site that does not exist'
  FROM lane l LEFT JOIN site s ON s.seq = l.site WHERE s.seq IS NULL;

-- name: check_site_gone
-- Nobody would look there: these rows would wait for ever.
SELECT 'recipient ' || r.address || ' of message ' || m.id || ' waits at a site that does not exist'
  FROM recipient r JOIN message m ON m.seq = r.message
 WHERE r.due_ms IS NOT NULL AND r.site IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM site s WHERE s.seq = r.site);

-- name: check_domain_site
SELECT 'domain ' || d.name || ' leads to a site that does not exist'
  FROM domain d LEFT JOIN site s ON s.seq = d.site WHERE d.site IS NOT NULL AND s.seq IS NULL;

-- name: check_due
-- No time after the year 9999 can be asked for, and no wait is longer than a year and its jitter
-- (60000000000 ms) from when the message was still to be sent, by this clock or the engine's. What
-- is due later would wait for ever. Where send_ms itself is no time check_send tells.
SELECT 'recipient ' || r.address || ' of message ' || m.id || ' waits until '
       || coalesce(date(r.due_ms / 1000, 'unixepoch'), r.due_ms || ' ms')
       || ', later than anybody can have asked for'
  FROM recipient r JOIN message m ON m.seq = r.message
 WHERE r.due_ms IS NOT NULL
   AND r.due_ms > min(253402300799000,
                      max(m.send_ms, m.expires_ms, unixepoch() * 1000,
                          coalesce((SELECT wall_ms FROM clock), 0)) + 60000000000)
   AND m.send_ms <= 253402300799000;

-- name: check_send
SELECT 'message ' || m.id || ' is to be sent at ' || m.send_ms || ' ms, which is no time'
  FROM message m WHERE m.finished_ms IS NULL AND m.send_ms > 253402300799000;

-- name: check_suspended
-- A pause ends after a year and its jitter at most, one for others to go first after a second; a
-- minute is what clocks may differ by.
SELECT 'site ' || s.key || ' is left alone until '
       || coalesce(date(s.suspended_until_ms / 1000, 'unixepoch'), s.suspended_until_ms || ' ms')
       || ', longer than any pause'
  FROM site s
 WHERE s.suspended_until_ms > max(unixepoch() * 1000,
                                  coalesce((SELECT wall_ms FROM clock), 0)) + 60000000000
 UNION ALL
SELECT 'site ' || s.key || ' is passed over until '
       || coalesce(date(s.paused_ms / 1000, 'unixepoch'), s.paused_ms || ' ms')
       || ', longer than any pause'
  FROM site s
 WHERE s.paused_ms > max(unixepoch() * 1000,
                         coalesce((SELECT wall_ms FROM clock), 0)) + 61000
 UNION ALL
SELECT 'domain ' || d.name || ' is not looked up until '
       || coalesce(date(d.retry_ms / 1000, 'unixepoch'), d.retry_ms || ' ms')
       || ', longer than any pause'
  FROM domain d
 WHERE d.retry_ms > max(unixepoch() * 1000,
                        coalesce((SELECT wall_ms FROM clock), 0)) + 60000000000;

-- name: check_text
-- text_of: the bytes as text, replaced where they are none.
SELECT 'site ' || text_of(CAST(s.key AS BLOB)) || ' has a text that is none'
  FROM (SELECT key, concat_ws(char(10), provider, hosts, suspended_by, suspended_reason, last_reply,
                              pipelining) AS texts FROM site) s
 WHERE text_of(CAST(s.texts AS BLOB)) IS NOT s.texts
 UNION ALL
SELECT 'domain ' || text_of(CAST(d.name AS BLOB)) || ' has a text that is none'
  FROM (SELECT name, concat_ws(char(10), result, hosts, error) AS texts FROM domain) d
 WHERE text_of(CAST(d.texts AS BLOB)) IS NOT d.texts;

-- name: check_name
-- Of the tables: an index may be whole where its table is not.
SELECT 'site ' || seq || ' has a name that is no text (' || text_of(CAST(key AS BLOB)) || ')'
  FROM site NOT INDEXED WHERE text_of(CAST(key AS BLOB)) IS NOT key
 UNION ALL
SELECT 'domain ' || text_of(CAST(name AS BLOB)) || ' has a name that is no text'
  FROM domain NOT INDEXED WHERE text_of(CAST(name AS BLOB)) IS NOT name;

-- name: check_jump
-- Numbers of messages: what was never given out has nothing to shift. Until it ends nothing expires
-- and nothing is purged.
SELECT 'the jump of the clock ' || j.seq || ' concerns messages ' || (j.done + 1) || ' to ' || j.last
       || ', and there were only ' || n.top
  FROM clock_jump j,
       (SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'message'), 0) AS top) n
 WHERE j.done < j.last AND (j.last > n.top OR j.done < 0);

-- name: check_jump_time
-- For an hour after the last jump nothing is purged. Of one that is not the last the clock may have
-- gone back since.
SELECT 'the jump of the clock ' || j.seq || ' took place at ' || j.at_ms || ' ms, which is no time'
  FROM clock_jump j WHERE j.at_ms > 253402300799000
 UNION ALL
SELECT 'the last jump of the clock (' || j.seq || ') took place '
       || coalesce(datetime(j.at_ms / 1000, 'unixepoch'), 'at ' || j.at_ms || ' ms')
       || ', which is yet to come'
  FROM clock_jump j
 WHERE j.seq = (SELECT seq FROM clock_jump WHERE amount_ms NOT IN (-1, at_ms)
                 ORDER BY seq DESC LIMIT 1)
   AND j.at_ms > max(unixepoch() * 1000, coalesce((SELECT wall_ms FROM clock), 0)) + 60000
   AND j.at_ms <= 253402300799000;

-- name: check_sending
SELECT 'recipient ' || r.address || ' of message ' || m.id || ' is on the wire of no session'
  FROM recipient r JOIN message m ON m.seq = r.message
 WHERE r.lane IS NOT NULL AND r.state = 'sending' AND (r.session IS NULL OR r.opened_ms IS NULL);

-- name: check_owed
-- Who wants to be told of a failure was told, or is owed it ('none' is on record, too). What is owed
-- is the truth.
SELECT 'nobody was told, or is to be told, that recipient ' || r.address || ' of message ' || m.id
       || ' failed, which its sender wants to hear'
  FROM recipient r JOIN message m ON m.seq = r.message
 WHERE r.wants & 1 AND r.state = 'failed' AND r.reported IS NULL
   AND NOT EXISTS (SELECT 1 FROM owed o
                    WHERE o.message = r.message AND o.recipient = r.seq AND o.kind = 'failed')
 UNION ALL
SELECT 'that it is ' || o.kind || ' is to be told of recipient ' || coalesce(r.address, o.recipient)
       || ' of message ' || coalesce(m.id, o.message) || ', which '
       || coalesce('is ' || r.state, 'does not exist')
  FROM owed o
  LEFT JOIN recipient r ON r.seq = o.recipient AND r.message = o.message
  LEFT JOIN message m ON m.seq = o.message
 WHERE CASE o.kind WHEN 'failed' THEN r.state IS NOT 'failed'
                   WHEN 'relayed' THEN r.state IS NOT 'delivered'
                   ELSE r.seq IS NULL OR r.finished_ms IS NOT NULL END;

-- name: check_session
SELECT 'session ' || s.id || ' is open, and its worker ' || s.worker || ' has ended'
  FROM session s LEFT JOIN worker w ON w.seq = s.worker
 WHERE s.ended_ms IS NULL AND (w.seq IS NULL OR w.state IN ('stopped', 'lost'));

-- name: check_priority
SELECT 'recipient ' || r.address || ' of message ' || m.id || ' has priority ' || r.priority
       || ', its message ' || m.priority
  FROM recipient r JOIN message m ON m.seq = r.message WHERE r.priority <> m.priority;

-- name: check_row
SELECT 'recipient ' || r.address || ' of message ' || m.id || ' does not fit its checksum'
  FROM recipient r JOIN message m ON m.seq = r.message
 WHERE r.checksum <> checksum_of(m.id, m.sender, r.address, r.notify, r.orcpt);

-- name: check_digest
-- CASE: only content that was staged is looked for among all messages.
SELECT 'chunk ' || (c.key & 4095) || ' of the content of message '
       || coalesce(CASE WHEN c.key > 0 THEN (SELECT m.id FROM message m WHERE m.seq = c.key >> 12)
                        ELSE (SELECT m.id FROM message m WHERE m.content = c.key >> 12) END,
                   '(staged)')
       || ' does not fit its digest'
  FROM content c WHERE c.digest <> digest_of(c.data);

-- name: seals
-- Messages, what their digests cover, and the digests of their chunks; a condition over m may follow.
SELECT m.digest, m.require_tls, m.on_doubt, m.id, m.sender, m.message_id, m.size, m.chunks,
       m.eightbit, m.smtputf8, m.reports, m.ret, m.envid, m.priority_wire, m.requiretls,
       (SELECT group_concat(hex(c.digest), '' ORDER BY c.key) FROM content c
         WHERE c.key BETWEEN iif(m.content < 0, m.content, m.seq) * 4096
                         AND iif(m.content < 0, m.content, m.seq) * 4096 + 4095) AS digests
  FROM message m

-- name: check_seal
-- Of ``seals``. Of content that lacks a chunk check_content tells.
SELECT 'message ' || id || ' or its content does not fit its digest: it would not be sent'
  FROM seals
 WHERE digest IS NOT NULL AND length(digests) = 32 * chunks
   AND NOT sealed(digest, require_tls, on_doubt, id, sender, message_id, size, chunks, eightbit,
                  smtputf8, reports, ret, envid, priority_wire, requiretls, digests);

-- name: check_purged
SELECT 'message ' || m.id || ' was purged and '
       || CASE WHEN m.finished_ms IS NULL THEN 'is not finished' ELSE 'still has content' END
  FROM message m
 WHERE m.purged_ms IS NOT NULL
   AND (m.finished_ms IS NULL
        OR EXISTS (SELECT 1 FROM content c
                    WHERE c.key BETWEEN iif(m.content < 0, m.content, m.seq) * 4096
                                    AND iif(m.content < 0, m.content, m.seq) * 4096 + 4095));

-- name: check_content_owner
SELECT 'content ' || c.id || ' belongs to no message and is not staged'
  FROM (SELECT DISTINCT key >> 12 AS id FROM content) c
 WHERE CASE WHEN c.id > 0
            THEN NOT EXISTS (SELECT 1 FROM message m
                              WHERE m.seq = c.id AND coalesce(m.content, 0) >= 0)
            ELSE c.id NOT IN (SELECT content FROM message WHERE content IS NOT NULL)
                 AND NOT EXISTS (SELECT 1 FROM staged s WHERE s.seq = -c.id) END;

-- name: check_staged
-- The mark goes after a day, what a message names stays (stale_staged).
SELECT 'content of message ' || m.id || ' is still marked as staged'
  FROM message m JOIN staged s ON s.seq = -m.content;

-- name: check_attempt_owner
SELECT 'attempt ' || a.seq || ' belongs to no recipient of its message'
  FROM attempt a LEFT JOIN recipient r ON r.seq = a.recipient WHERE r.message IS NOT a.message;

-- name: check_attempts
-- Numbered from 1 without a hole; in doubt where one of them is, but for a late one: what it would
-- have told was decided without it.
SELECT 'recipient ' || r.address || ' of message ' || m.id
       || CASE WHEN coalesce(a.amount, 0) <> r.attempts
                 THEN ' counts ' || r.attempts || ' attempts and has ' || coalesce(a.amount, 0)
               WHEN a.amount IS NOT NULL AND (a.highest <> a.amount
                    OR a.total <> a.amount * (a.amount + 1) / 2)
                 THEN ' has attempts whose numbers are not 1 to ' || a.amount
               WHEN coalesce(a.doubt, 0) <> r.in_doubt
                 THEN ' is ' || CASE WHEN r.in_doubt THEN '' ELSE 'not ' END
                      || 'in doubt, its attempts say otherwise'
               WHEN r.doubts > coalesce(a.marks, 0)
                 THEN ' was lost ' || r.doubts || ' times in a row, and ' || coalesce(a.marks, 0)
                      || ' attempts are in doubt'
               ELSE ' is delivered, and no attempt says so' END
  FROM recipient r
  JOIN message m ON m.seq = r.message
  LEFT JOIN (SELECT recipient, count(*) AS amount, max(number) AS highest, sum(number) AS total,
                    max(in_doubt AND NOT late) AS doubt, sum(in_doubt AND NOT late) AS marks,
                    max(verdict = 'delivered') AS delivered
               FROM attempt GROUP BY recipient) a ON a.recipient = r.seq
 WHERE coalesce(a.amount, 0) <> r.attempts
    OR a.highest <> a.amount OR a.total <> a.amount * (a.amount + 1) / 2
    OR coalesce(a.doubt, 0) <> r.in_doubt OR r.doubts > coalesce(a.marks, 0)
    OR (r.state = 'delivered' AND NOT coalesce(a.delivered, 0) AND NOT r.in_doubt);

-- name: check_event_owner
SELECT 'event ' || e.id || ' (' || e.type || ') tells of a message or recipient that does not exist'
  FROM event e
  LEFT JOIN message m ON m.seq = e.message
  LEFT JOIN recipient r ON r.seq = e.recipient
 WHERE (e.message IS NOT NULL AND m.seq IS NULL)
    OR (e.recipient IS NOT NULL AND r.message IS NOT e.message);

-- name: check_tag_owner
SELECT 'tag ' || t.tag || ' belongs to no message'
  FROM tag t LEFT JOIN message m ON m.seq = t.message WHERE m.seq IS NULL;

-- name: check_idempotency
-- The message may be purged before its key.
SELECT 'idempotency key ' || i.key || ' names message ' || i.id || ', which was sent under '
       || coalesce('key ' || m.idempotency_key, 'none')
  FROM idempotency i JOIN message m ON m.id = i.id WHERE m.idempotency_key IS NOT i.key;

-- name: check_numbers
-- A number that is given out twice would let an old claim speak for a new one.
SELECT 'number ' || t.top || ' of ' || t.name || ' is above the counter that gives them out'
  FROM (SELECT 'message' AS name, (SELECT max(seq) FROM message) AS top
         UNION ALL SELECT 'recipient', (SELECT max(seq) FROM recipient)
         UNION ALL SELECT 'lane', max((SELECT coalesce(max(token), 0) FROM lane),
                                      (SELECT coalesce(max(lane), 0) FROM recipient
                                        WHERE lane IS NOT NULL))
         UNION ALL SELECT 'worker', max((SELECT coalesce(max(seq), 0) FROM worker),
                                        (SELECT coalesce(max(worker), 0) FROM lane))
         UNION ALL SELECT 'site', max((SELECT coalesce(max(seq), 0) FROM site),
                                      (SELECT coalesce(max(site), 0) FROM domain))
         UNION ALL SELECT 'attempt', (SELECT max(seq) FROM attempt)
         UNION ALL SELECT 'event', (SELECT max(id) FROM event)
         UNION ALL SELECT 'staged', max((SELECT coalesce(max(seq), 0) FROM staged),
                                        (SELECT coalesce(-min(content), 0) FROM message))) t
  LEFT JOIN sqlite_sequence s ON s.name = t.name
 WHERE t.top > coalesce(s.seq, 0);

-- name: check_tally
-- What triggers counted, against the rows.
SELECT 'the tally counts ' || t.recipients || ' ' || t.state || ' recipients of ' || t.messages
       || ' messages, there are ' || coalesce(w.recipients, 0) || ' of ' || coalesce(w.messages, 0)
  FROM (SELECT state, recipients + (state = 'queued')
                 * coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'recipient'), 0)
                 AS recipients,
               messages + (state = 'queued')
                 * coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'message'), 0) AS messages
          FROM tally) t
  LEFT JOIN (SELECT state, count(*) AS recipients, count(DISTINCT message) AS messages
               FROM recipient NOT INDEXED
              WHERE state IN ('queued', 'deferred', 'held') GROUP BY state) w ON w.state = t.state
 WHERE t.recipients <> coalesce(w.recipients, 0) OR t.messages <> coalesce(w.messages, 0)
 UNION ALL
SELECT 'the tally lacks ' || (3 - count(*)) || ' of its rows' FROM tally HAVING count(*) <> 3;

-- name: check_message_tally
-- A message of several recipients that is not finished has a row.
SELECT 'the tally of message ' || coalesce(m.id, w.message) || ' does not fit its recipients'
  FROM (SELECT message, count(*) AS amount, sum(state = 'queued') AS queued,
               sum(state = 'deferred') AS deferred, sum(state = 'held') AS held
          FROM recipient NOT INDEXED GROUP BY message) w
  LEFT JOIN message m ON m.seq = w.message
  LEFT JOIN message_tally t ON t.message = w.message
 WHERE iif(t.message IS NULL, w.amount > 1 AND m.finished_ms IS NULL AND m.seq IS NOT NULL,
           (t.queued, t.deferred, t.held) <> (w.queued, w.deferred, w.held))
 UNION ALL
SELECT 'the tally of message ' || t.message || ' belongs to no message'
  FROM message_tally t WHERE NOT EXISTS (SELECT 1 FROM message m WHERE m.seq = t.message);

-- name: check_hours
-- Each event that counts is in the sums. Where no event was ever deleted (their numbers have no
-- hole), they agree exactly; of hours that were deleted (hours_from) nothing can be said.
WITH told AS (
  SELECT m.stream, r.domain,
         CASE e.type WHEN 'message.cancelled' THEN 'cancelled' WHEN 'message.held' THEN 'held'
                     ELSE substr(e.type, 11) END AS status, count(*) AS amount
    FROM event e JOIN message m ON m.seq = e.message JOIN recipient r ON r.seq = e.recipient
   WHERE e.type IN ('recipient.delivered', 'recipient.failed', 'recipient.deferred',
                    'recipient.held', 'message.cancelled', 'message.held')
     AND coalesce(e.detail ->> 'counted', 1)
     AND e.at_ms > coalesce((SELECT CAST(value AS INTEGER) + 7200000 FROM meta
                              WHERE key = 'hours_from'), -1)
   GROUP BY 1, 2, 3),
sums AS (SELECT stream, domain, status, sum(recipients) AS amount
           FROM hour_stat GROUP BY 1, 2, 3),
whole AS (SELECT (SELECT count(*) FROM event)
                 = coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'event'), 0)
                 AND NOT EXISTS (SELECT 1 FROM meta WHERE key = 'hours_from') AS yes)
SELECT 'hourly sums of ' || coalesce(s.domain, t.domain) || ' (stream '
       || coalesce(s.stream, t.stream) || ') count ' || coalesce(s.amount, 0) || ' '
       || coalesce(s.status, t.status) || ', its events ' || coalesce(t.amount, 0)
  FROM told t
  FULL JOIN sums s ON s.stream = t.stream AND s.domain = t.domain AND s.status = t.status
 WHERE coalesce(t.amount, 0) > coalesce(s.amount, 0)
    OR ((SELECT yes FROM whole) AND coalesce(t.amount, 0) <> coalesce(s.amount, 0));

-- name: owners
-- Engine processes that did not end, with what they hold.
SELECT w.seq, w.kind, w.pid, w.host, w.lock,
       (SELECT count(*) FROM lane l WHERE l.worker = w.seq),
       (SELECT count(*) FROM recipient r WHERE r.lane IN (SELECT token FROM lane
                                                           WHERE worker = w.seq))
  FROM worker w WHERE w.state IN ('starting', 'ready', 'draining') ORDER BY w.seq;
