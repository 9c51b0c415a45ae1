-- Lease, claim, open, settle, release. Every statement about a recipient is guarded by its lane.

-- name: due_sites
-- None in a copy that nobody adopted.
SELECT json_group_array(seq) FROM (
  SELECT seq FROM site
   WHERE ready_ms <= :now_ms AND NOT EXISTS (SELECT 1 FROM meta WHERE key = 'copied_ms')
   ORDER BY ready_ms LIMIT 1000);

-- name: ready_sites
-- canary: nothing is known of the site, or it failed last time; one lane finds out for all. Sites
-- that have all their lanes are passed over here, or 200 slow ones would hide all others. Texts as
-- bytes: damage may have made them none.
SELECT seq, CAST(key AS BLOB), CAST(provider AS BLOB), CAST(hosts AS BLOB),
       CASE WHEN last_success_ms = 0 OR failures > 0 THEN 1
            ELSE min(:limit, coalesce(lane_cap, :limit)) END
         - (SELECT count(*) FROM lane WHERE lane.site = site.seq),
       (SELECT count(*) FROM lane WHERE lane.site = site.seq AND worker = :worker),
       CASE WHEN pipelining_until_ms > :now_ms THEN CAST(pipelining AS BLOB) END,
       CASE WHEN chunking = 1 OR chunking_until_ms > :now_ms THEN chunking END,
       failures > 0, last_success_ms = 0 OR failures > 0
  FROM site
 WHERE ready_ms <= :now_ms
   AND (SELECT count(*) FROM lane WHERE lane.site = site.seq)
       < CASE WHEN last_success_ms = 0 OR failures > 0 THEN 1
              ELSE min(:limit, coalesce(lane_cap, :limit)) END
   AND (SELECT count(*) FROM lane WHERE lane.site = site.seq AND worker = :worker) < :share
 ORDER BY ready_ms LIMIT 200;

-- name: proven_sites
-- Of the sites that are due longest, those that took mail last time and have room. A page of them,
-- or the others that wait would make each look dearer; they are leased, too, as it goes on.
SELECT json_group_array(seq) FROM (
  SELECT seq FROM (SELECT seq, last_success_ms, failures, lane_cap FROM site
                    WHERE ready_ms <= :now_ms ORDER BY ready_ms LIMIT :page) AS due
   WHERE last_success_ms > 0 AND failures = 0
     AND (SELECT count(*) FROM lane WHERE lane.site = due.seq)
         < min(:limit, coalesce(lane_cap, :limit))
     AND (SELECT count(*) FROM lane WHERE lane.site = due.seq AND worker = :worker) < :share
   LIMIT :most);

-- name: ready_among
-- As ready_sites, of these sites, which took mail last time.
SELECT seq, CAST(key AS BLOB), CAST(provider AS BLOB), CAST(hosts AS BLOB),
       min(:limit, coalesce(lane_cap, :limit))
         - (SELECT count(*) FROM lane WHERE lane.site = site.seq),
       (SELECT count(*) FROM lane WHERE lane.site = site.seq AND worker = :worker),
       CASE WHEN pipelining_until_ms > :now_ms THEN CAST(pipelining AS BLOB) END,
       CASE WHEN chunking = 1 OR chunking_until_ms > :now_ms THEN chunking END,
       0, 0
  FROM site
 WHERE seq IN (SELECT value FROM json_each(:among))
   AND ready_ms <= :now_ms AND last_success_ms > 0 AND failures = 0
   AND (SELECT count(*) FROM lane WHERE lane.site = site.seq)
       < min(:limit, coalesce(lane_cap, :limit))
   AND (SELECT count(*) FROM lane WHERE lane.site = site.seq AND worker = :worker) < :share
 ORDER BY ready_ms;

-- name: open_sites
-- Sites where ``ready_sites`` would find work and room for a lane.
SELECT seq FROM site
 WHERE ready_ms <= :now_ms AND NOT EXISTS (SELECT 1 FROM meta WHERE key = 'copied_ms')
   AND (SELECT count(*) FROM lane WHERE lane.site = site.seq)
       < CASE WHEN last_success_ms = 0 OR failures > 0 THEN 1
              ELSE min(:limit, coalesce(lane_cap + (cap_ms <= :now_ms), :limit)) END
   AND (SELECT count(*) FROM lane WHERE lane.site = site.seq AND worker = :worker) < :share
 ORDER BY ready_ms LIMIT :most;

-- name: grow_caps
UPDATE site SET lane_cap = CASE WHEN lane_cap + 1 < :limit THEN lane_cap + 1 END,
                cap_ms = :now_ms + :pause_ms
 WHERE lane_cap IS NOT NULL AND cap_ms <= :now_ms;

-- name: cap
-- A host refused one connection more while mail went through on others: that is a limit, not a
-- dead site. The lanes that are left are what it bears; each refusal counts, also those of lanes
-- that were refused together and are not all given back yet.
UPDATE site
   SET lane_cap = max(1, min(coalesce(lane_cap - 1, :limit),
                             (SELECT count(*) FROM lane WHERE lane.site = site.seq) - 1)),
       cap_ms = :now_ms + :pause_ms, last_reply = :text
 WHERE seq = :site AND failures = 0 AND last_success_ms > :since_ms - 2000
   AND (SELECT count(*) FROM lane WHERE lane.site = site.seq) > 1
RETURNING lane_cap;

-- name: learn
-- Of two sessions that learn at once, from hosts that differ perhaps, the worse experience stands,
-- and until the later time.
UPDATE site
   SET pipelining = CASE
         WHEN :pipelining IS NULL THEN pipelining
         WHEN pipelining = 'none' AND pipelining_until_ms > :now_ms THEN 'none'
         ELSE :pipelining END,
       pipelining_until_ms = CASE WHEN :pipelining IS NULL THEN pipelining_until_ms
                                  ELSE max(pipelining_until_ms, :until_ms) END,
       chunking = CASE WHEN chunking = 0 AND chunking_until_ms > :now_ms THEN 0
                       ELSE coalesce(:chunking, chunking) END,
       chunking_until_ms = CASE WHEN :chunking = 0 THEN max(chunking_until_ms, :until_ms)
                                ELSE chunking_until_ms END
 WHERE seq = :site;

-- name: due_messages
-- Distinct messages due at each site, counted no further than needed.
SELECT s.value, (SELECT count(DISTINCT message) FROM (
  SELECT message FROM (SELECT message FROM recipient
    WHERE site = s.value AND priority = 0 AND due_ms <= :now_ms LIMIT :most)
  UNION ALL
  SELECT message FROM (SELECT message FROM recipient
    WHERE site = s.value AND priority = 1 AND due_ms <= :now_ms LIMIT :most)
  UNION ALL
  SELECT message FROM (SELECT message FROM recipient
    WHERE site = s.value AND priority = 2 AND due_ms <= :now_ms LIMIT :most)))
  FROM json_each(:sites) s;

-- name: lease
INSERT INTO lane (site, worker, leased_ms)
SELECT value, :worker, :now_ms FROM json_each(:sites) ORDER BY key
RETURNING token, site;

-- name: set_next_due
-- Raised by an empty look: the earliest waiting recipient, or the end of time.
UPDATE site
   SET next_due_ms = min(
         coalesce((SELECT min(r.due_ms) FROM recipient r
                    WHERE r.site = site.seq AND priority = 0 AND due_ms IS NOT NULL), 253402300799000),
         coalesce((SELECT min(r.due_ms) FROM recipient r
                    WHERE r.site = site.seq AND priority = 1 AND due_ms IS NOT NULL), 253402300799000),
         coalesce((SELECT min(r.due_ms) FROM recipient r
                    WHERE r.site = site.seq AND priority = 2 AND due_ms IS NOT NULL), 253402300799000))
 WHERE seq IN (SELECT value FROM json_each(:sites));

-- name: lower_next_due
UPDATE site SET next_due_ms = d.due
  FROM (SELECT site AS s, min(due_ms) AS due FROM recipient
         WHERE seq IN (SELECT value FROM json_each(:recipients))
           AND due_ms IS NOT NULL AND site IS NOT NULL
         GROUP BY site) d
 WHERE site.seq = d.s AND site.next_due_ms > d.due;

-- name: lane_turn
-- How many older lanes the site has, how many of them the same worker, and how many lanes in all.
SELECT site, claims,
       (SELECT count(*) FROM lane o WHERE o.site = lane.site AND o.token < lane.token),
       (SELECT count(*) FROM lane o
         WHERE o.site = lane.site AND o.token < lane.token AND o.worker = lane.worker),
       (SELECT count(*) FROM lane o WHERE o.site = lane.site)
  FROM lane WHERE token = :lane;

-- name: due_at_site
-- Recipients due at a site, counted no further than needed.
SELECT count(*) FROM (
  SELECT 1 FROM (SELECT 1 FROM recipient
    WHERE site = :site AND priority = 0 AND due_ms <= :now_ms LIMIT :most)
  UNION ALL
  SELECT 1 FROM (SELECT 1 FROM recipient
    WHERE site = :site AND priority = 1 AND due_ms <= :now_ms LIMIT :most)
  UNION ALL
  SELECT 1 FROM (SELECT 1 FROM recipient
    WHERE site = :site AND priority = 2 AND due_ms <= :now_ms LIMIT :most));

-- name: lane_took
UPDATE lane SET claims = claims + 1 WHERE token = :lane;

-- name: due_recipients
-- A page of what is due at a site, by due time, with all that an attempt needs, as one JSON array
-- (bytes: damage may have made a text none). Kind: 1 the domain moved since the row was stamped (or
-- is forgotten), 2 its message's time is over, 3 the domain's route is too old to be used. Refresh:
-- the route expired, and nobody was told to look again. The domain to refresh is not read from the
-- row, whose text may be damaged. Rows of one due time lie in the index by seq; group_concat takes
-- them as they come.
SELECT CAST(coalesce('[' || group_concat(row, ',') || ']', '[]') AS BLOB) FROM (
SELECT json_array(
       r.seq, r.message, m.id, r.address, r.domain, r.checksum, m.sender, m.size,
       iif(m.content < 0, m.content, m.seq), m.chunks, m.stream, m.priority, m.created_ms,
       m.expires_ms, r.attempts, r.deferrals, m.on_doubt, m.require_tls, m.eightbit, m.smtputf8,
       m.message_id, iif(m.digest IS NULL, NULL, hex(m.digest)), r.due_ms, d.name,
       CASE WHEN d.generation IS NOT r.generation OR d.site IS NOT r.site THEN 1
            WHEN m.expires_ms <= :now_ms
                 AND NOT EXISTS (SELECT 1 FROM clock_jump WHERE done < last) THEN 2
            WHEN d.usable_ms + :grace_ms <= :now_ms THEN 3
            ELSE 0 END,
       d.usable_ms <= :now_ms AND (d.due_ms IS NULL OR d.due_ms > :now_ms), m.reports, m.ret,
       m.envid, m.priority_wire, m.requiretls, r.notify, r.orcpt) AS row
  FROM recipient r
  CROSS JOIN message m ON m.seq = r.message
  LEFT JOIN domain d ON d.name = r.domain
 WHERE r.site = :site AND r.priority = :priority AND r.due_ms <= :now_ms
   AND (r.due_ms, r.seq) > (:after_ms, :after)
 ORDER BY r.due_ms LIMIT :most);

-- name: refresh_domains
UPDATE domain SET due_ms = :now_ms
 WHERE name IN (SELECT value FROM json_each(:domains)) AND (due_ms IS NULL OR due_ms > :now_ms);

-- name: put_next_due
-- What is due was taken or is nobody's to take: the earliest that is due later, or the end of time.
UPDATE site SET next_due_ms = n.due
  FROM (SELECT min(
         coalesce((SELECT min(due_ms) FROM recipient
                    WHERE site = :site AND priority = 0 AND due_ms > :now_ms), 253402300799000),
         coalesce((SELECT min(due_ms) FROM recipient
                    WHERE site = :site AND priority = 1 AND due_ms > :now_ms), 253402300799000),
         coalesce((SELECT min(due_ms) FROM recipient
                    WHERE site = :site AND priority = 2 AND due_ms > :now_ms), 253402300799000))
          AS due) n
 WHERE seq = :site AND next_due_ms <> n.due;

-- name: pause_site
UPDATE site SET paused_ms = :until_ms WHERE seq = :site;

-- name: unroute
UPDATE recipient SET site = NULL WHERE seq IN (SELECT value FROM json_each(:recipients));

-- name: claim
-- The first :opened of them go on the wire next, on :session.
UPDATE recipient
   SET state = iif(j.key < :opened, 'sending', 'claimed'), lane = :lane, due_ms = NULL,
       session = iif(j.key < :opened, :session, recipient.session),
       opened_ms = iif(j.key < :opened, :now_ms, recipient.opened_ms)
  FROM json_each(:recipients) j
 WHERE recipient.seq = j.value AND recipient.due_ms IS NOT NULL;

-- name: claimed
-- Which of them the lane has: an index that is damaged names rows that do not wait.
SELECT seq FROM recipient
 WHERE seq IN (SELECT value FROM json_each(:recipients)) AND +lane = :lane;

-- name: damaged_recipients
-- due_recipients where a text is none or a value is bytes: row by row, all texts as bytes.
SELECT r.seq, r.message, CAST(m.id AS BLOB), CAST(r.address AS BLOB), CAST(r.domain AS BLOB),
       r.checksum, CAST(m.sender AS BLOB), m.size,
       iif(m.content < 0, m.content, m.seq), m.chunks, CAST(m.stream AS BLOB), m.priority,
       m.created_ms, m.expires_ms, r.attempts, r.deferrals, CAST(m.on_doubt AS BLOB), m.require_tls,
       m.eightbit, m.smtputf8, CAST(m.message_id AS BLOB),
       CAST(iif(m.digest IS NULL, NULL, hex(m.digest)) AS BLOB), r.due_ms, CAST(d.name AS BLOB),
       CASE WHEN d.generation IS NOT r.generation OR d.site IS NOT r.site THEN 1
            WHEN m.expires_ms <= :now_ms
                 AND NOT EXISTS (SELECT 1 FROM clock_jump WHERE done < last) THEN 2
            WHEN d.usable_ms + :grace_ms <= :now_ms THEN 3
            ELSE 0 END,
       d.usable_ms <= :now_ms AND (d.due_ms IS NULL OR d.due_ms > :now_ms), m.reports,
       CAST(m.ret AS BLOB), CAST(m.envid AS BLOB), m.priority_wire, m.requiretls,
       CAST(r.notify AS BLOB), CAST(r.orcpt AS BLOB)
  FROM recipient r
  CROSS JOIN message m ON m.seq = r.message
  LEFT JOIN domain d ON d.name = r.domain
 WHERE r.site = :site AND r.priority = :priority AND r.due_ms <= :now_ms
   AND (r.due_ms, r.seq) > (:after_ms, :after)
 ORDER BY r.due_ms LIMIT :most;

-- name: first_chunks
-- Contents of one chunk: [keys, octets, digests] as JSON, and their data one after another.
SELECT json_array(json_group_array(key / 4096), json_group_array(octet_length(data)),
                  json_group_array(hex(digest))),
       CAST(group_concat(data, '') AS BLOB)
  FROM content
 WHERE key IN (SELECT value * 4096 FROM json_each(:contents));

-- name: chunk_digests
-- What the chunks of long contents are, without their data.
SELECT j.value, c.key - j.value * 4096, length(c.data), c.digest
  FROM json_each(:contents) j
  JOIN content c ON c.key BETWEEN j.value * 4096 AND j.value * 4096 + 4095
 ORDER BY c.key;

-- name: chunk
SELECT data, digest FROM content WHERE key = :key;

-- name: open
-- recipients: for each, seq * 65536 + its place in lanes and sessions. What is opened already may be
-- opened again for the same session. What is too old (look: there is such a message) is not sent any
-- more. The plus keeps SQLite from walking over all of a lane.
UPDATE recipient
   SET state = 'sending', session = :sessions ->> (j.value & 65535), opened_ms = :now_ms
  FROM json_each(:recipients) j
 WHERE recipient.seq = j.value >> 16 AND +recipient.lane = :lanes ->> (j.value & 65535)
   AND (recipient.state = 'claimed'
        OR (recipient.state = 'sending'
            AND recipient.session = :sessions ->> (j.value & 65535)))
   AND (NOT :look OR EXISTS (SELECT 1 FROM message m
                              WHERE m.seq = recipient.message AND m.expires_ms > :now_ms));

-- name: opened
-- Which of the recipients of open are open now.
SELECT r.seq
  FROM json_each(:recipients) j CROSS JOIN recipient r ON r.seq = j.value >> 16
 WHERE +r.lane = :lanes ->> (j.value & 65535) AND r.state = 'sending'
   AND r.session = :sessions ->> (j.value & 65535) AND r.opened_ms = :now_ms
   AND (NOT :look OR EXISTS (SELECT 1 FROM message m
                              WHERE m.seq = r.message AND m.expires_ms > :now_ms));

-- name: any_expired
-- Whether a message is too old to be sent. A jump of the clock that is not worked off yet says later
-- what is too old.
SELECT EXISTS (SELECT 1 FROM message WHERE finished_ms IS NULL AND expires_ms <= :now_ms)
       AND NOT EXISTS (SELECT 1 FROM clock_jump WHERE done < last);

-- name: settle
-- The recipients of attempts that ended alike and were just written, from number first on, become
-- what the attempts say; dues: for each, when it is due again.
UPDATE recipient
   SET state = :state,
       reason = :reason,
       due_ms = j.value,
       lane = CASE WHEN :state = 'claimed' THEN recipient.lane END,
       attempts = attempts + 1,
       deferrals = deferrals + :charge,
       in_doubt = max(recipient.in_doubt, :in_doubt),
       doubts = CASE WHEN :in_doubt THEN doubts ELSE 0 END,
       last_ms = a.ended_ms,
       finished_ms = CASE WHEN :state IN ('delivered', 'failed') THEN a.ended_ms END,
       mx = a.host,
       reply_code = :code,
       enhanced_code = :enhanced,
       reply_text = a.reply_text,
       tls = :tls
  FROM json_each(:dues) j, attempt a
 WHERE a.seq = :first + j.key AND recipient.seq = a.recipient;

-- name: settle_untried
-- Claims that end, or go on, without another attempt; rows: [recipient, lane, state, due_ms, charge].
UPDATE recipient
   SET state = CASE WHEN j.state = 'queued' AND (deferrals > 0 OR recipient.in_doubt)
                    THEN 'deferred' ELSE j.state END,
       due_ms = j.due_ms,
       lane = CASE WHEN j.state = 'claimed' THEN recipient.lane END,
       deferrals = deferrals + (j.state = 'deferred' AND j.charge)
  FROM (SELECT value ->> 0 AS recipient, value ->> 1 AS lane, value ->> 2 AS state,
               value ->> 3 AS due_ms, value ->> 4 AS charge
          FROM json_each(:rows)) j
 WHERE recipient.seq = j.recipient AND +recipient.lane = j.lane
   AND recipient.state IN ('sending', 'claimed')
RETURNING seq;

-- name: late_truth
-- A fenced worker's verdict: a delivery wins unless the row is final, reopened since, or on the
-- wire again (then that transaction will tell). Everything else is only recorded.
UPDATE recipient
   SET state = 'delivered', reason = NULL, due_ms = NULL, lane = NULL, finished_ms = :ended_ms,
       last_ms = :ended_ms, reply_code = :code, enhanced_code = :enhanced, reply_text = :text,
       mx = :mx, tls = :tls
 WHERE seq = :recipient
   AND state IN ('queued', 'deferred', 'held', 'claimed')
   AND coalesce(reopened_ms, 0) <= :started_ms
RETURNING seq;

-- name: attempt
-- Attempts that ended alike; rows: [recipient, lane, session, started_ms, ended_ms, text, and where
-- they differ: host, address]. state: what
-- the recipients are about to become, where their guard holds: what was never opened cannot be
-- delivered or in doubt. NULL: no guard. ahead: 1 where the recipient does not count it yet. Written
-- in the order of rows: CROSS JOIN keeps it. The plus keeps SQLite from walking over all of a lane.
INSERT INTO attempt (message, recipient, number, session, worker, started_ms, ended_ms, stage,
                     host, address, reply_code, enhanced_code, reply_text, verdict, reason,
                     in_doubt, late)
SELECT r.message, r.seq, r.attempts + :ahead, j.value ->> 2, :worker, j.value ->> 3,
       j.value ->> 4, :stage, coalesce(:host, j.value ->> 6), coalesce(:address, j.value ->> 7),
       :code, :enhanced, j.value ->> 5, :verdict, :reason,
       :in_doubt, :late
  FROM json_each(:rows) j CROSS JOIN recipient r ON r.seq = j.value ->> 0
 WHERE :state IS NULL
    OR (+r.lane = j.value ->> 1
        AND (r.state = 'sending' OR (r.state = 'claimed' AND :state NOT IN ('delivered', 'held'))));

-- name: attempted
SELECT recipient FROM attempt WHERE seq >= :first;

-- name: count_late
UPDATE recipient SET attempts = attempts + 1 WHERE seq = :recipient;

-- name: recipient_events
-- Of attempts just written; head: the detail up to the host (NULL: each its own), tail: from there
-- to the attempt's number.
INSERT INTO event (at_ms, type, message, recipient, detail)
SELECT ended_ms, :type, message, recipient,
       :head || coalesce(:host, json_quote(host)) || :tail || number || '}'
  FROM attempt
 WHERE seq BETWEEN :first AND :last;

-- name: uncounted_event
-- The late verdict that was just recorded changed nothing; whoever counts by events passes it over.
UPDATE event SET detail = json_set(detail, '$.counted', 0)
 WHERE id = (SELECT max(id) FROM event)
   AND recipient = :recipient AND detail ->> 'late' = 1;

-- name: deferral_events
-- A deferral that was decided after its attempts were recorded: it says what the last one said.
INSERT INTO event (at_ms, type, message, recipient, detail)
SELECT :now_ms, 'recipient.deferred', r.message, r.seq,
       json_object('stage', a.stage, 'host', r.mx, 'code', r.reply_code,
                   'enhanced', r.enhanced_code, 'reason', r.reason,
                   'in_doubt', coalesce(a.in_doubt, 0), 'late', 0, 'number', r.attempts)
  FROM recipient r
  LEFT JOIN attempt a ON a.seq = (SELECT seq FROM attempt
                                   WHERE message = r.message AND recipient = r.seq
                                   ORDER BY seq DESC LIMIT 1)
 WHERE r.seq IN (SELECT value FROM json_each(:recipients));

-- name: count_hour
INSERT INTO hour_stat (hour_ms, stream, domain, status, reason, recipients, bytes, ms_sum)
SELECT :now_ms / 3600000 * 3600000, m.stream, r.domain, r.state, coalesce(r.reason, ''),
       count(*), sum(m.size), sum(max(coalesce(r.finished_ms - m.created_ms, 0), 0))
  FROM recipient r JOIN message m ON m.seq = r.message
 WHERE r.seq IN (SELECT value FROM json_each(:recipients))
   AND r.state IN ('delivered', 'failed', 'deferred', 'held', 'cancelled')
 GROUP BY m.stream, r.domain, r.state, r.reason
    ON CONFLICT DO UPDATE SET recipients = recipients + excluded.recipients,
                              bytes = bytes + excluded.bytes, ms_sum = ms_sum + excluded.ms_sum;

-- name: finish_messages
-- The recipients of a message are numbered in a row and sent in that order, so that one next to these
-- mostly says that it goes on: else each of many would look through all that went before it.
UPDATE message SET finished_ms = :now_ms
 WHERE seq IN (SELECT message FROM recipient
                WHERE seq IN (SELECT value FROM json_each(:recipients))
                  AND finished_ms IS NOT NULL)
   AND finished_ms IS NULL
   AND seq NOT IN (SELECT message FROM recipient
                    WHERE seq IN (SELECT value + 1 FROM json_each(:recipients))
                      AND finished_ms IS NULL)
   AND NOT EXISTS (SELECT 1 FROM recipient r
                    WHERE r.message = message.seq AND r.finished_ms IS NULL);

-- name: site_success
-- A delivery clears the site's failures.
UPDATE site SET last_success_ms = :now_ms, failures = 0, suspended_until_ms = 0,
                suspended_by = NULL, suspended_reason = NULL, last_reply = NULL
 WHERE seq IN (SELECT value FROM json_each(:sites));

-- name: session_put
-- rows: [id, lane, site, host, address, source, started_ms, ended_ms, messages, ehlo, tls_wanted,
-- tls_reached, tls_version, tls_cipher, tls_peer, tls_verified, end_cause]. Of a lapsed worker nobody
-- would end it: it stays open no longer than it is written.
INSERT INTO session (id, worker, site, host, address, source, started_ms, ended_ms, messages, ehlo,
                     tls_wanted, tls_reached, tls_version, tls_cipher, tls_peer, tls_verified,
                     end_cause)
SELECT j.value ->> 0, coalesce(l.worker, 0), j.value ->> 2, j.value ->> 3, j.value ->> 4,
       j.value ->> 5, j.value ->> 6,
       coalesce(j.value ->> 7, iif(l.worker IS NULL, j.value ->> 6, NULL)), j.value ->> 8,
       j.value ->> 9, j.value ->> 10, j.value ->> 11, j.value ->> 12, j.value ->> 13,
       j.value ->> 14, j.value ->> 15,
       coalesce(j.value ->> 16, iif(l.worker IS NULL, 'worker lost', NULL))
  FROM json_each(:rows) j LEFT JOIN lane l ON l.token = j.value ->> 1
 WHERE true
    ON CONFLICT (id) DO UPDATE SET ended_ms = excluded.ended_ms, messages = excluded.messages,
                                   end_cause = excluded.end_cause;

-- name: session_event
INSERT INTO event (at_ms, type, detail)
SELECT coalesce(value ->> 7, value ->> 6),
       iif(value ->> 7 IS NULL, 'session.opened', 'session.closed'),
       json_object('session', value ->> 0, 'host', value ->> 3, 'address', value ->> 4,
                   'cause', value ->> 16)
  FROM json_each(:rows);

-- name: lane_worker
SELECT worker FROM lane WHERE token = :lane;

-- name: lane_sizes
-- How many recipients each of the lanes has, in their order.
SELECT (SELECT count(*) FROM recipient r WHERE r.lane = j.value) FROM json_each(:lanes) j
 ORDER BY j.key;

-- name: release_claimed
UPDATE recipient
   SET state = CASE WHEN deferrals > 0 OR in_doubt THEN 'deferred' ELSE 'queued' END,
       lane = NULL, due_ms = :now_ms
 WHERE lane IN (SELECT value FROM json_each(:lanes)) AND state = 'claimed'
RETURNING seq;

-- name: lanes_holding
-- Which of the lanes have recipients, and whose they are.
SELECT j.value, l.worker
  FROM json_each(:lanes) j LEFT JOIN lane l ON l.token = j.value
 WHERE EXISTS (SELECT 1 FROM recipient r WHERE r.lane = j.value);

-- name: held_by_lanes
-- What lanes had on the wire when they ended without a verdict. A claim that was not opened (doubted
-- after another boot) has no session of its own: its row still names that of an earlier attempt.
SELECT r.seq, coalesce(m.on_doubt, :on_doubt),
       iif(r.state = 'sending', r.session, NULL), iif(r.state = 'sending', r.opened_ms, NULL),
       s.host, s.address, r.doubts
  FROM recipient r
  JOIN message m ON m.seq = r.message
  LEFT JOIN session s ON s.id = r.session AND r.state = 'sending'
 WHERE r.lane IN (SELECT value FROM json_each(:lanes)) AND r.state IN ('claimed', 'sending')
 LIMIT :most;

-- name: doubt
-- rows: [recipient, state, reason, due_ms, host]
UPDATE recipient
   SET state = j.state, reason = j.reason, lane = NULL, due_ms = j.due_ms, in_doubt = 1,
       doubts = doubts + 1, deferrals = deferrals + 1, attempts = attempts + 1, last_ms = :now_ms,
       reply_code = NULL, enhanced_code = NULL, reply_text = :text, mx = coalesce(j.host, mx)
  FROM (SELECT value ->> 0 AS recipient, value ->> 1 AS state, value ->> 2 AS reason,
               value ->> 3 AS due_ms, value ->> 4 AS host
          FROM json_each(:rows)) j
 WHERE recipient.seq = j.recipient AND recipient.state IN ('claimed', 'sending');

-- name: lanes_end
DELETE FROM lane WHERE token IN (SELECT value FROM json_each(:lanes));

-- name: site_failures
SELECT failures FROM site WHERE seq = :site;

-- name: lane_sites
SELECT l.token, l.worker, l.site, s.failures, s.last_success_ms
  FROM lane l JOIN site s ON s.seq = l.site
 WHERE l.token IN (SELECT value FROM json_each(:lanes));

-- name: suspend
-- Once for all lanes that fail together: a site that is suspended already stays as it is. A
-- success since the failing pass began means that it lives: the count starts again at one.
UPDATE site
   SET failures = CASE WHEN last_success_ms > :since_ms THEN 1 ELSE failures + 1 END,
       suspended_until_ms = :until_ms, suspended_by = :by, suspended_reason = :reason,
       last_reply = :text, lane_cap = NULL
 WHERE seq = :site AND suspended_until_ms <= :now_ms
RETURNING failures;

-- name: site_event
INSERT INTO event (at_ms, type, detail)
SELECT :at_ms, :type, json_object('site', key, 'until_ms', suspended_until_ms, 'by', suspended_by,
                                  'reason', suspended_reason, 'reply', last_reply)
  FROM site WHERE seq = :site;

-- name: next_due
-- Nothing is due in a copy that nobody adopted.
-- Two seeks: with min() SQLite would walk over all sites and domains.
SELECT min(v)
  FROM (SELECT (SELECT ready_ms FROM site ORDER BY ready_ms LIMIT 1) AS v
         UNION ALL
        SELECT (SELECT ready_ms FROM domain INDEXED BY domain_ready
                 WHERE due_ms IS NOT NULL AND router IS NULL ORDER BY ready_ms LIMIT 1))
 WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key = 'copied_ms');
