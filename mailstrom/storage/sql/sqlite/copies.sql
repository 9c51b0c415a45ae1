-- A copy of a spool is marked until somebody adopts it; meanwhile an engine leaves it alone.

-- name: copied
SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'copied_ms';

-- name: adopt
DELETE FROM meta WHERE key IN ('copied_ms', 'copied_from') RETURNING key;

-- name: jump_lain
-- All that lay in the copy lay there since it was made, or came later.
INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last)
SELECT :now_ms, :copied_ms, :now_ms - :copied_ms, 0, coalesce(max(seq), 0), coalesce(max(seq), 0)
  FROM message;

-- name: jump_copied
-- A clock that jumped is no time that went by.
UPDATE meta SET value = CAST(value AS INTEGER) + :amount_ms WHERE key = 'copied_ms';
