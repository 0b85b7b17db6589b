-- each half of a disclosure is signed by who stands in it (R-C4, R-C5)
-- depends: consent_0020_disclosure_extent

-- migrate: apply
SET lock_timeout = '5s';

-- Ed25519 over the row without these two; an approval's over the proposal too. Rows of before have none.
ALTER TABLE consent_disclosure ADD COLUMN key_id text, ADD COLUMN signature bytea;
ALTER TABLE consent_disclosure ADD CONSTRAINT consent_disclosure_signed_ck
    CHECK (num_nulls(key_id, signature) = 0 AND length(signature) = 64) NOT VALID;

-- migrate: rollback
SELECT 1;
