-- A copy of a spool is marked until somebody adopts it; meanwhile an engine leaves it alone.

-- name: copied
SELECT 1 FROM meta WHERE key = 'copied_ms';

-- name: adopt
DELETE FROM meta WHERE key IN ('copied_ms', 'copied_from') RETURNING key;
