-- what a disclosure is about: days and how many persons; and which transfer came of it (R-C4)
-- depends: consent_0010_transfer

-- migrate: apply
SET lock_timeout = '5s';

-- Rows of before say nothing of it.
ALTER TABLE consent_disclosure
    ADD COLUMN from_day date,
    ADD COLUMN to_day date,
    ADD COLUMN n_persons int,
    ADD COLUMN transfer_id uuid,
    ADD CONSTRAINT consent_disclosure_extent_ck CHECK (
        num_nulls(from_day, to_day, n_persons) IN (0, 3)
        AND (step = 'proposed' OR n_persons IS NULL)
        AND coalesce(n_persons >= 1 AND from_day <= to_day, true)),
    ADD CONSTRAINT consent_disclosure_transfer_ck CHECK (step = 'approved' OR transfer_id IS NULL);

-- migrate: rollback
SELECT 1;
