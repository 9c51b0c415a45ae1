-- The streams that the enqueue trigger applies.

-- name: streams
SELECT name, priority, max_age_ms, on_doubt, require_tls, max_size, max_recipients
  FROM stream ORDER BY name;

-- name: streams_clear
DELETE FROM stream;

-- name: stream_put
INSERT INTO stream (name, priority, max_age_ms, on_doubt, require_tls, max_size, max_recipients)
VALUES (:name, :priority, :max_age_ms, :on_doubt, :require_tls, :max_size, :max_recipients);

-- name: stream_limits
SELECT max_size, max_recipients FROM stream WHERE name = :name;
