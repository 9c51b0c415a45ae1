-- The public views. Columns follow SemVer; only SQL that SQLite 3.40 understands.
-- A recipient whose site is suspended, or whose domain cannot be resolved at the moment, is shown
-- deferred with the site's or domain's reason: the fact stands in one row, not in each recipient.

-- unresolved: the domain's DNS fails, and no stamp of an earlier answer is good any more (60 s after
-- it expired: ROUTE_GRACE_MS of the store).
CREATE VIEW recipient_now AS
SELECT r.seq, r.message, r.address, r.domain, r.site, s.key AS site_key, s.provider,
       CASE
         WHEN r.state = 'claimed'
           THEN CASE WHEN r.deferrals > 0 OR r.in_doubt THEN 'deferred' ELSE 'queued' END
         WHEN r.state = 'queued' AND r.due_ms <= n.now_ms
              AND (s.suspended_until_ms > n.now_ms
                   OR (d.result = 'temporary' AND d.retry_ms > n.now_ms
                       AND (r.site IS NULL OR d.usable_ms + 60000 <= n.now_ms)))
           THEN 'deferred'
         ELSE r.state
       END AS status,
       CASE
         WHEN r.state = 'queued' AND r.due_ms <= n.now_ms AND s.suspended_until_ms > n.now_ms
           THEN s.suspended_reason
         WHEN r.state = 'queued' AND r.due_ms <= n.now_ms
              AND d.result = 'temporary' AND d.retry_ms > n.now_ms
              AND (r.site IS NULL OR d.usable_ms + 60000 <= n.now_ms)
           THEN 'dns'
         WHEN r.state = 'queued' OR (r.state = 'claimed' AND r.deferrals = 0 AND NOT r.in_doubt)
           THEN NULL
         ELSE r.reason
       END AS reason,
       CASE
         WHEN r.due_ms IS NULL THEN NULL
         WHEN r.site IS NULL THEN max(r.due_ms, coalesce(d.retry_ms, 0))
         WHEN d.result = 'temporary' AND d.usable_ms + 60000 <= n.now_ms
           THEN max(r.due_ms, coalesce(s.suspended_until_ms, 0), d.retry_ms)
         ELSE max(r.due_ms, coalesce(s.suspended_until_ms, 0))
       END AS next_attempt_ms,
       r.attempts, r.in_doubt, r.last_ms, r.finished_ms, r.mx, r.reply_code, r.enhanced_code,
       CASE
         WHEN r.reply_text IS NOT NULL THEN r.reply_text
         WHEN r.state = 'queued' AND s.suspended_until_ms > n.now_ms THEN s.last_reply
         WHEN r.state = 'queued' AND d.result = 'temporary'
              AND (r.site IS NULL OR d.usable_ms + 60000 <= n.now_ms) THEN d.error
       END AS reply_text,
       r.tls
  FROM recipient r
  JOIN (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS now_ms) n
  LEFT JOIN site s ON s.seq = r.site
  LEFT JOIN domain d ON d.name = r.domain;

CREATE VIEW recipients AS
SELECT m.id AS message_id, r.address, r.domain, r.site_key AS site, r.provider, r.status, r.reason,
       r.attempts, r.in_doubt,
       r.next_attempt_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.next_attempt_ms / 1000.0, 'unixepoch') AS next_attempt_at,
       r.last_ms AS last_attempt_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.last_ms / 1000.0, 'unixepoch') AS last_attempt_at,
       r.finished_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.finished_ms / 1000.0, 'unixepoch') AS finished_at,
       r.mx, r.reply_code, r.enhanced_code, r.reply_text, r.tls
  FROM recipient_now r JOIN message m ON m.seq = r.message;

CREATE VIEW messages AS
SELECT m.id,
       (SELECT CASE
                 WHEN min(r.status) = max(r.status) THEN min(r.status)
                 WHEN sum(r.status IN ('delivered', 'failed', 'cancelled')) = count(*)
                   THEN 'partial'
                 WHEN max(r.status = 'sending') THEN 'sending'
                 WHEN max(r.status = 'deferred') THEN 'deferred'
                 WHEN max(r.status = 'queued') THEN 'queued'
                 ELSE 'held'
               END
          FROM recipient_now r WHERE r.message = m.seq) AS status,
       m.sender, m.subject, m.size, m.stream,
       CASE m.priority WHEN 0 THEN 'high' WHEN 1 THEN 'normal' ELSE 'low' END AS priority,
       m.message_id, m.idempotency_key,
       (SELECT json_group_array(t.tag) FROM tag t WHERE t.message = m.seq) AS tags,
       m.metadata,
       m.created_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', m.created_ms / 1000.0, 'unixepoch') AS created_at,
       m.send_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', m.send_ms / 1000.0, 'unixepoch') AS send_at,
       m.expires_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', m.expires_ms / 1000.0, 'unixepoch') AS expires_at,
       m.finished_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', m.finished_ms / 1000.0, 'unixepoch') AS finished_at
  FROM message m;

CREATE VIEW attempts AS
SELECT a.seq AS id, m.id AS message_id, r.address AS recipient, a.number, a.session AS session_id,
       a.worker,
       a.started_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', a.started_ms / 1000.0, 'unixepoch') AS started_at,
       a.ended_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', a.ended_ms / 1000.0, 'unixepoch') AS ended_at,
       a.stage, a.host, a.address, a.reply_code, a.enhanced_code, a.reply_text, a.verdict,
       a.reason, a.in_doubt, a.late
  FROM attempt a
  JOIN message m ON m.seq = a.message
  JOIN recipient r ON r.seq = a.recipient;

CREATE VIEW sessions AS
SELECT s.id, s.worker, site.key AS site, s.host, s.address, s.source,
       s.started_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', s.started_ms / 1000.0, 'unixepoch') AS started_at,
       s.ended_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', s.ended_ms / 1000.0, 'unixepoch') AS ended_at,
       s.messages, s.ehlo, s.tls_wanted, s.tls_reached, s.tls_version, s.tls_cipher, s.tls_peer,
       s.tls_verified, s.end_cause
  FROM session s LEFT JOIN site ON site.seq = s.site;

CREATE VIEW events AS
SELECT e.id, e.at_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', e.at_ms / 1000.0, 'unixepoch') AS at_at,
       e.type, m.id AS message_id, r.address AS recipient, e.detail
  FROM event e
  LEFT JOIN message m ON m.seq = e.message
  LEFT JOIN recipient r ON r.seq = e.recipient;

CREATE VIEW destinations AS
SELECT s.key AS site, s.provider, s.hosts,
       (SELECT json_group_array(d.name) FROM domain d WHERE d.site = s.seq) AS domains,
       (SELECT count(*) FROM recipient r
         WHERE r.site = s.seq AND r.due_ms IS NOT NULL AND r.state = 'queued') AS queued,
       (SELECT count(*) FROM recipient r
         WHERE r.site = s.seq AND r.due_ms IS NOT NULL AND r.state = 'deferred') AS deferred,
       (SELECT min(r.due_ms) FROM recipient r
         WHERE r.site = s.seq AND r.due_ms IS NOT NULL) AS oldest_due_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ',
                (SELECT min(r.due_ms) FROM recipient r
                  WHERE r.site = s.seq AND r.due_ms IS NOT NULL) / 1000.0,
                'unixepoch') AS oldest_due_at,
       (SELECT count(*) FROM lane l WHERE l.site = s.seq) AS lanes,
       (SELECT min(CAST(value AS INTEGER), coalesce(s.lane_cap, CAST(value AS INTEGER)))
          FROM meta WHERE key = 'lanes_limit') AS lanes_limit,
       nullif(s.suspended_until_ms, 0) AS suspended_until_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', nullif(s.suspended_until_ms, 0) / 1000.0,
                'unixepoch') AS suspended_until_at,
       s.suspended_by, s.suspended_reason AS reason, s.last_reply, s.pipelining
  FROM site s;

CREATE VIEW domains AS
SELECT d.name, s.key AS site, d.result, d.hosts,
       d.resolved_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', d.resolved_ms / 1000.0, 'unixepoch') AS resolved_at,
       d.expires_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', d.expires_ms / 1000.0, 'unixepoch') AS expires_at,
       d.error
  FROM domain d LEFT JOIN site s ON s.seq = d.site;

CREATE VIEW workers AS
SELECT w.seq AS id, w.kind, w.pid, w.host, w.state,
       w.started_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', w.started_ms / 1000.0, 'unixepoch') AS started_at,
       w.heartbeat_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', w.heartbeat_ms / 1000.0, 'unixepoch') AS heartbeat_at,
       w.sessions, w.restarts
  FROM worker w;

CREATE VIEW hourly_stats AS
SELECT h.hour_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', h.hour_ms / 1000.0, 'unixepoch') AS hour_at,
       h.stream, h.domain, h.status, nullif(h.reason, '') AS reason, h.recipients, h.bytes,
       h.ms_sum
  FROM hour_stat h;

CREATE VIEW suppressions AS
SELECT s.address, s.scope, s.reason,
       s.created_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', s.created_ms / 1000.0, 'unixepoch') AS created_at,
       s.expires_ms,
       strftime('%Y-%m-%dT%H:%M:%fZ', s.expires_ms / 1000.0, 'unixepoch') AS expires_at,
       s.evidence
  FROM suppression s;

CREATE VIEW tags AS
SELECT t.tag, m.id AS message_id FROM tag t JOIN message m ON m.seq = t.message;
