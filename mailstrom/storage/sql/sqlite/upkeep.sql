-- Workers, lapse, expiry, clock, retention.

-- name: meta_get
SELECT value FROM meta WHERE key = :key;

-- name: retention
SELECT key, value FROM meta WHERE key GLOB 'retention_*';

-- name: meta_set
INSERT INTO meta (key, value) VALUES (:key, :value)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: meta_delete
DELETE FROM meta WHERE key = :key;

-- name: worker_add
INSERT INTO worker (kind, pid, host, boot, lock, state, started_ms, heartbeat_ms, restarts)
VALUES (:kind, :pid, :host, :boot, :lock, 'starting', :now_ms, :now_ms, :restarts)
RETURNING seq;

-- name: worker_beat
UPDATE worker SET state = :state, heartbeat_ms = :now_ms, sessions = :sessions
 WHERE seq = :worker AND state IN ('starting', 'ready', 'draining');

-- name: worker_end
UPDATE worker SET state = :state, heartbeat_ms = :now_ms, sessions = 0
 WHERE seq = :worker AND state IN ('starting', 'ready', 'draining')
RETURNING seq;

-- name: worker_alive
-- Only a live worker may take anything: nobody would take it back from a dead one.
SELECT 1 FROM worker WHERE seq = :worker AND state IN ('starting', 'ready', 'draining');

-- name: workers_live
SELECT seq, kind, pid, host, state, boot, lock FROM worker
 WHERE state IN ('starting', 'ready', 'draining') ORDER BY seq;

-- name: workers_all
SELECT seq, kind, pid, host, state, boot, lock FROM worker ORDER BY seq;

-- name: workers_delivering
SELECT count(*) FROM worker
 WHERE kind = 'delivery' AND state IN ('starting', 'ready', 'draining');

-- name: worker_event
INSERT INTO event (at_ms, type, detail)
SELECT :now_ms, :type, json_object('worker', seq, 'kind', kind, 'pid', pid)
  FROM worker WHERE seq = :worker;

-- name: worker_boot
SELECT boot FROM worker WHERE seq = :worker;

-- name: worker_lanes
SELECT token FROM lane WHERE worker = :worker;

-- name: lapse_claimed
-- Claimed and never opened: not a byte was sent, so simply due again.
UPDATE recipient
   SET state = CASE WHEN deferrals > 0 OR in_doubt THEN 'deferred' ELSE 'queued' END,
       lane = NULL, due_ms = :now_ms
 WHERE seq IN (SELECT seq FROM recipient
                WHERE lane IN (SELECT token FROM lane WHERE worker = :worker)
                  AND state = 'claimed' LIMIT :most)
RETURNING seq;

-- name: lapse_lanes
DELETE FROM lane WHERE worker = :worker RETURNING token;

-- name: lapse_routes
UPDATE domain SET router = NULL WHERE router = :worker;

-- name: lapse_sessions
UPDATE session SET ended_ms = :now_ms, end_cause = 'worker lost'
 WHERE worker = :worker AND ended_ms IS NULL;

-- name: lapse_event
INSERT INTO event (at_ms, type, detail)
VALUES (:now_ms, 'claim.lapsed',
        json_object('worker', :worker, 'lanes', :lanes, 'released', :released,
                    'in_doubt', :in_doubt));

-- name: expired
-- Not what came since the last look and is older than that look: see strays.
SELECT r.seq, r.state, r.reason
  FROM message m JOIN recipient r ON r.message = m.seq
 WHERE m.finished_ms IS NULL AND m.expires_ms <= :now_ms
   AND NOT EXISTS (SELECT 1 FROM clock c
                    WHERE c.one = 1 AND m.seq > c.last AND m.created_ms < c.wall_ms - 60000)
   AND r.state IN ('queued', 'deferred', 'held', 'claimed')
 ORDER BY m.expires_ms LIMIT :most;

-- name: expire
-- The last reply stays, or what kept its site or domain: it says what the world answered until the
-- end.
UPDATE recipient
   SET reason = CASE WHEN state = 'held' AND reason IN ('in_doubt', 'poison') THEN 'in_doubt'
                     ELSE 'expired' END,
       state = 'failed', due_ms = NULL, lane = NULL, finished_ms = :now_ms,
       reply_text = coalesce(reply_text,
                             (SELECT last_reply FROM site WHERE seq = recipient.site),
                             (SELECT error FROM domain WHERE name = recipient.domain))
 WHERE seq IN (SELECT value FROM json_each(:recipients))
   AND state IN ('queued', 'deferred', 'held', 'claimed')
RETURNING seq;

-- name: last_event
SELECT coalesce(max(id), 0) FROM event;

-- name: failed_since
SELECT m.id, r.address, r.reason, r.enhanced_code, r.reply_text
  FROM event e JOIN recipient r ON r.seq = e.recipient JOIN message m ON m.seq = e.message
 WHERE e.id > :event AND e.type = 'recipient.failed' AND e.detail ->> 'by' IS NULL
   AND CASE WHEN :domain IS NULL THEN e.detail ->> 'stage' IS NULL
            ELSE e.detail ->> 'stage' = 'route' AND r.domain = :domain END
 ORDER BY e.id LIMIT 1000;

-- name: expire_events
INSERT INTO event (at_ms, type, message, recipient, detail)
SELECT :now_ms, 'recipient.failed', r.message, r.seq, json_object('reason', r.reason)
  FROM recipient r WHERE r.seq IN (SELECT value FROM json_each(:recipients));

-- name: jumps_pending
SELECT seq, at_ms, old_ms, amount_ms, grace_ms, known, last, done FROM clock_jump
 WHERE done < last ORDER BY seq;

-- name: last_jump
-- Strays (see strays) are a client's, not ours.
SELECT at_ms FROM clock_jump WHERE amount_ms NOT IN (-1, at_ms) ORDER BY seq DESC LIMIT 1;

-- name: last_jump_ends
-- A jump is as old as the look that saw it. By a later time what waits for an hour after the last one
-- would wait for years.
UPDATE clock_jump SET at_ms = :wall_ms
 WHERE seq = (SELECT seq FROM clock_jump WHERE amount_ms NOT IN (-1, at_ms) ORDER BY seq DESC LIMIT 1)
   AND at_ms > :ahead_ms;

-- name: strays
-- Mail newer than a look whose clock was wrong: among the newest, by number, since what is finished
-- costs a look, too.
SELECT coalesce(max(created_ms < :behind_ms), 0), coalesce(max(created_ms > :ahead_ms), 0)
  FROM message
 WHERE seq > max(:last, (SELECT max(seq) FROM message) - :most) AND finished_ms IS NULL;

-- name: stray_add
-- A jump of those messages alone: by all that they are behind, or to now.
INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last, done)
SELECT :at_ms, :old_ms, :amount_ms, 0, 0, coalesce(max(seq), 0), :done FROM message WHERE true;

-- name: strays_done
DELETE FROM clock_jump WHERE done >= last AND amount_ms IN (-1, at_ms);

-- name: clock_get
SELECT wall_ms, monotonic_ms, CAST(boot AS BLOB), last FROM clock WHERE one = 1;

-- name: clock_set
INSERT INTO clock (one, wall_ms, monotonic_ms, boot, last)
SELECT 1, :wall_ms, :monotonic_ms, :boot, coalesce(max(seq), 0) FROM message WHERE true
    ON CONFLICT (one) DO UPDATE SET wall_ms = excluded.wall_ms,
                                    monotonic_ms = excluded.monotonic_ms, boot = excluded.boot,
                                    last = excluded.last;

-- name: newest_number
SELECT coalesce(max(seq), 0) FROM message;

-- name: newest_created
SELECT created_ms FROM message ORDER BY seq DESC LIMIT 1;

-- name: jump_add
INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last)
SELECT :at_ms, :old_ms, :amount_ms, :grace_ms, :known, coalesce(max(seq), 0) FROM message;

-- name: jump_others
SELECT coalesce(max(created_ms < :behind_ms), 0), coalesce(max(created_ms > :ahead_ms), 0)
  FROM message
 WHERE seq > :known AND finished_ms IS NULL
   AND created_ms NOT BETWEEN :old_from_ms AND :old_to_ms;

-- name: jump_of_known
-- The jump that was just added: of what was there at the look before alone.
UPDATE clock_jump SET last = known WHERE seq = (SELECT max(seq) FROM clock_jump);

-- name: jump_expiry
-- Time that a message was not yet to be sent is no age: a send time of the user's own (later than
-- its creation) stays, and what follows it stays behind it.
UPDATE message
   SET expires_ms = CASE
         WHEN :grace_ms > 0 THEN max(expires_ms, :grace_ms)
         WHEN :amount_ms > 0 THEN expires_ms + min(:amount_ms, max(0, :at_ms - send_ms))
         WHEN send_ms > created_ms AND send_ms > :at_ms THEN expires_ms
         ELSE min(expires_ms + :amount_ms, :at_ms + expires_ms - send_ms) END,
       delay_from_ms = CASE
         WHEN :amount_ms > 0 THEN delay_from_ms + min(:amount_ms, max(0, :at_ms - send_ms))
         WHEN send_ms > created_ms AND send_ms > :at_ms THEN delay_from_ms
         ELSE min(delay_from_ms + :amount_ms, :at_ms) END,
       send_ms = CASE WHEN send_ms > created_ms THEN send_ms ELSE min(send_ms, :at_ms) END
 WHERE seq > :done AND seq <= :until AND finished_ms IS NULL
   AND (seq <= :known OR CASE WHEN :amount_ms < 0 THEN created_ms > :at_ms
                              ELSE created_ms <= :old_ms + :slack_ms END);

-- name: jump_due
-- After a jump back, nothing waits for the old time to come again but what its sender told to.
UPDATE recipient
   SET due_ms = CASE WHEN m.send_ms > m.created_ms
                     THEN max(due_ms + :amount_ms, :at_ms, m.send_ms)
                     WHEN recipient.state = 'queued' OR :amount_ms = -1 THEN :at_ms
                     ELSE max(due_ms + :amount_ms, :at_ms) END
  FROM (SELECT seq, created_ms, send_ms FROM message
         WHERE seq > :done AND seq <= :until AND finished_ms IS NULL
           AND (seq <= :known OR created_ms > :at_ms)) m
 WHERE :amount_ms < 0 AND recipient.message = m.seq
   AND recipient.state IN ('queued', 'deferred') AND recipient.due_ms > :at_ms
RETURNING recipient.seq;

-- name: jump_grace_due
-- One more attempt for what a reboot with a far later clock would have expired unseen.
UPDATE recipient SET due_ms = :at_ms
 WHERE :grace_ms > 0 AND state = 'deferred' AND due_ms > :at_ms
   AND message IN (SELECT seq FROM message WHERE seq > :done AND seq <= :until
                      AND expires_ms <= :grace_ms AND finished_ms IS NULL
                      AND (seq <= :known OR created_ms <= :old_ms + :slack_ms))
RETURNING seq;

-- name: sites_to
-- The last of the next so many sites, and how many they are.
SELECT max(seq), count(*) FROM (SELECT seq FROM site WHERE seq > :after ORDER BY seq LIMIT :most);

-- name: domains_to
-- As sites_to; names in hexadecimal digits, there and back.
SELECT hex(max(name)), count(*)
  FROM (SELECT name FROM domain WHERE name > CAST(unhex(:after) AS TEXT)
         ORDER BY name LIMIT :most);

-- name: jump_sites
UPDATE site SET next_due_ms = min(next_due_ms, :at_ms),
                cap_ms = min(cap_ms, :at_ms), suspended_until_ms = min(suspended_until_ms, :at_ms + 3600000),
                paused_ms = min(paused_ms, :at_ms), used_ms = min(used_ms, :at_ms),
                last_success_ms = min(last_success_ms, :at_ms)
 WHERE seq > :after AND seq <= :until
   AND max(next_due_ms, cap_ms, suspended_until_ms - 3600000, paused_ms, used_ms,
           last_success_ms) > :at_ms;

-- name: jump_domains
-- Answers stay good for what is left of their time to live; 0 is an answer that was called off. What
-- a clock that went ahead has stamped already is not moved ahead once more. What has a later stamp than
-- newest_ms was stamped after another jump, which has a turn of its own.
UPDATE domain
   SET expires_ms = CASE WHEN expires_ms <= 0 THEN 0 ELSE max(1, min(253402300799000, expires_ms
         + iif(:amount_ms < 0 OR coalesce(resolved_ms, 0) <= :stamped_ms, :amount_ms, 0))) END,
       usable_ms = CASE WHEN usable_ms <= 0 THEN 0 ELSE max(1, min(253402300799000, usable_ms
         + iif(:amount_ms < 0 OR coalesce(resolved_ms, 0) <= :stamped_ms, :amount_ms, 0))) END,
       due_ms = min(due_ms, :at_ms), retry_ms = min(retry_ms, :at_ms),
       resolved_ms = min(resolved_ms, :at_ms)
 WHERE name > CAST(unhex(:after) AS TEXT) AND name <= CAST(unhex(:until) AS TEXT)
   AND coalesce(resolved_ms, 0) <= :newest_ms
   AND (:amount_ms <> 0 AND max(expires_ms, usable_ms) > 0
        OR due_ms > :at_ms OR retry_ms > :at_ms OR resolved_ms > :at_ms);

-- name: echo_due
-- The last jump back by a clock of ours, once it is older than before_ms and was not looked at again.
SELECT seq, amount_ms FROM clock_jump
 WHERE seq = (SELECT max(seq) FROM clock_jump WHERE amount_ms < -1) AND at_ms <= :before_ms
   AND done >= last
   AND seq > coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'clock_echo'), 0);

-- name: echo_recipients
-- Deferred by an attempt that has not ended yet by this clock, and not shifted since; or queued for
-- later although their sender named no time. Among the newest of both.
UPDATE recipient SET due_ms = max(due_ms + :amount_ms, :at_ms)
 WHERE due_ms > :at_ms
   AND seq IN (SELECT q.seq FROM attempt AS a CROSS JOIN recipient AS q ON q.seq = a.recipient
                WHERE a.seq > (SELECT coalesce(max(seq), 0) FROM attempt) - :most
                  AND a.ended_ms > :at_ms AND q.state = 'deferred' AND q.due_ms >= a.ended_ms
                UNION
               SELECT q.seq FROM message AS m CROSS JOIN recipient AS q ON q.message = m.seq
                WHERE m.seq > (SELECT coalesce(max(seq), 0) FROM message) - :most
                  AND m.finished_ms IS NULL AND m.send_ms <= m.created_ms AND q.state = 'queued')
RETURNING seq;

-- name: jump_done
UPDATE clock_jump SET done = :until WHERE seq = :seq;

-- name: purge_bodies
-- What is no number there is damage; 0 is nobody's.
SELECT seq, iif(typeof(content) IN ('integer', 'null'), content, 0),
       iif(typeof(chunks) = 'integer', max(1, chunks), 1)
  FROM message
 WHERE finished_ms <= :before_ms AND finished_ms IS NOT NULL AND purged_ms IS NULL
 ORDER BY finished_ms LIMIT :most;

-- name: delete_content
DELETE FROM content WHERE key BETWEEN :content * 4096 AND :content * 4096 + 4095;

-- name: set_content
UPDATE message SET content = :content WHERE seq = :message;

-- name: purges_staged
-- As purge_bodies, those that were staged: they name a staged number, or have more than one chunk.
-- Whether content lies under the message's own number, and whether some that nobody is staging now
-- lies under the one that it names.
SELECT m.seq, m.number, m.chunks,
       EXISTS (SELECT 1 FROM content c WHERE c.key BETWEEN m.seq * 4096 AND m.seq * 4096 + 4095),
       EXISTS (SELECT 1 FROM content c
                WHERE c.key BETWEEN m.number * 4096 AND m.number * 4096 + 4095)
       AND NOT EXISTS (SELECT 1 FROM staged s WHERE s.seq = -m.number)
  FROM (SELECT seq, iif(typeof(content) = 'integer' AND content < 0, content, NULL) AS number,
               iif(typeof(chunks) = 'integer', chunks, 1) AS chunks
          FROM message
         WHERE finished_ms <= :before_ms AND finished_ms IS NOT NULL AND purged_ms IS NULL
         ORDER BY finished_ms LIMIT :most) m
 WHERE m.number < 0 OR m.chunks > 1;

-- name: contents_shared
SELECT content, json_group_array(seq) FROM message
 WHERE content < 0 GROUP BY content HAVING count(*) > 1;

-- name: contents_since
SELECT content, min(seq), max(seq) FROM message WHERE seq > :seen AND content < 0 GROUP BY content;

-- name: is_anothers
-- A client's that stages it now, or another message's, of those that are asked.
SELECT 1 FROM staged WHERE seq = -:content
 UNION ALL
SELECT 1 FROM message
 WHERE seq IN (SELECT value FROM json_each(:among)) AND seq <> :message AND content = :content;

-- name: orphaned_content
-- Staged content that no message names, and that nobody can still mean to make a message of: all of
-- it, with chunks and bytes. Looked for in a damaged spool only. Sizes first: grouping would sort
-- the content itself.
WITH piece AS MATERIALIZED (SELECT key >> 12 AS id, length(data) AS size FROM content WHERE key < 0)
SELECT c.id, c.chunks, c.size
  FROM (SELECT id, count(*) AS chunks, sum(size) AS size FROM piece GROUP BY id) c
 WHERE c.id NOT IN (SELECT content FROM message WHERE content IS NOT NULL)
   AND NOT EXISTS (SELECT 1 FROM staged s WHERE s.seq = -c.id);

-- name: content_digests
SELECT group_concat(hex(digest), '' ORDER BY key) FROM content
 WHERE key BETWEEN :content * 4096 AND :content * 4096 + 4095;

-- name: mark_purged
UPDATE message SET purged_ms = :now_ms WHERE seq = :seq;

-- name: purge_messages
-- Recipients are counted no further than to one more than a piece takes.
SELECT seq, (SELECT count(*) FROM (SELECT 1 FROM recipient r
                                    WHERE r.message = message.seq LIMIT :most + 1))
  FROM message
 WHERE finished_ms <= :before_ms AND finished_ms IS NOT NULL AND purged_ms IS NOT NULL
 ORDER BY finished_ms LIMIT :most;

-- name: piece
SELECT seq FROM recipient WHERE message = :message ORDER BY address LIMIT :most;

-- name: delete_piece_attempts
DELETE FROM attempt
 WHERE message = :message AND recipient IN (SELECT value FROM json_each(:recipients));

-- name: delete_piece_events
DELETE FROM event
 WHERE message = :message AND recipient IN (SELECT value FROM json_each(:recipients));

-- name: delete_piece
DELETE FROM recipient WHERE seq IN (SELECT value FROM json_each(:recipients));

-- name: delete_attempts
DELETE FROM attempt WHERE message IN (SELECT value FROM json_each(:messages));

-- name: delete_recipients
DELETE FROM recipient WHERE message IN (SELECT value FROM json_each(:messages));

-- name: delete_tags
DELETE FROM tag WHERE message IN (SELECT value FROM json_each(:messages));

-- name: delete_message_events
DELETE FROM event WHERE message IN (SELECT value FROM json_each(:messages));

-- name: delete_messages
DELETE FROM message WHERE seq IN (SELECT value FROM json_each(:messages));

-- name: delete_events
-- Ids rise with time, so the oldest stand in front: no further look than that. One that a clock far
-- ahead stamped, since put right, must not stand in the way of all behind it.
DELETE FROM event
 WHERE id IN (SELECT id FROM (SELECT id, at_ms FROM event ORDER BY id LIMIT :most)
               WHERE at_ms <= :before_ms OR at_ms > :now_ms + 86400000);

-- name: delete_sessions
DELETE FROM session WHERE id IN (SELECT id FROM session
                                  WHERE started_ms <= :before_ms AND ended_ms IS NOT NULL
                                  ORDER BY started_ms LIMIT :most);

-- name: delete_idempotency
DELETE FROM idempotency WHERE key IN (SELECT key FROM idempotency WHERE expires_ms <= :now_ms
                                       ORDER BY expires_ms LIMIT :most);

-- name: delete_workers
DELETE FROM worker WHERE seq IN (SELECT seq FROM worker
                                  WHERE state IN ('stopped', 'lost') AND heartbeat_ms <= :before_ms
                                  LIMIT :most);

-- name: delete_hours
DELETE FROM hour_stat
 WHERE (hour_ms, stream, domain, status, reason)
       IN (SELECT hour_ms, stream, domain, status, reason FROM hour_stat
            WHERE hour_ms <= :before_ms ORDER BY hour_ms LIMIT :most);

-- name: delete_domains
-- Answers nobody asked for since; a recipient that is stamped all the same goes to the router.
DELETE FROM domain
 WHERE name IN (SELECT name FROM domain
                 WHERE due_ms IS NULL AND resolved_ms <= :before_ms AND router IS NULL
                 ORDER BY resolved_ms LIMIT :most)
RETURNING site;

-- name: touch_sites
UPDATE site SET used_ms = :now_ms WHERE seq IN (SELECT value FROM json_each(:sites));

-- name: delete_sites
-- Nothing leads there, waits there or is connected to it, and every message is younger than its use.
DELETE FROM site
 WHERE seq IN (SELECT seq FROM site WHERE used_ms <= :before_ms ORDER BY used_ms LIMIT :most)
   AND NOT EXISTS (SELECT 1 FROM domain d WHERE d.site = site.seq)
   AND NOT EXISTS (SELECT 1 FROM lane l WHERE l.site = site.seq)
   AND NOT EXISTS (SELECT 1 FROM recipient r WHERE r.site = site.seq AND r.due_ms IS NOT NULL)
   AND coalesce((SELECT m.created_ms FROM message m ORDER BY m.seq LIMIT 1) > used_ms, 1);

-- name: stale_staged
-- Rare: a client died while it staged. The second column: a message names it all the same.
SELECT seq, EXISTS (SELECT 1 FROM message WHERE content = -staged.seq AND content < 0)
  FROM staged WHERE created_ms <= :before_ms LIMIT 10;

-- name: delete_staged
DELETE FROM staged WHERE seq = :seq;
