-- What a site's hosts were seen to bear of pipelining (column pipelining, since 0001) and of CHUNKING
-- (RFC 3030), each with the time until which a bad experience holds.

ALTER TABLE site ADD COLUMN pipelining_until_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE site ADD COLUMN chunking INTEGER CHECK (chunking IN (0, 1));  -- NULL: never tried
ALTER TABLE site ADD COLUMN chunking_until_ms INTEGER NOT NULL DEFAULT 0;
