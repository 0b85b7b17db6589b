-- who was erased: what of theirs comes later, and is older than the erasure, has no effect (R-G3)
-- depends: privacy_0004_access_log_table

-- migrate: apply
SET lock_timeout = '5s';

-- Kept for as long as an older event can still be read: topics, dead letters, a restored backup.
CREATE TABLE privacy_erased (
    erased_day date NOT NULL,
    visitor_id uuid NOT NULL,
    erased_at timestamptz NOT NULL,
    CONSTRAINT privacy_erased_pk PRIMARY KEY (erased_day, visitor_id)
) PARTITION BY RANGE (erased_day);
CREATE INDEX privacy_erased_visitor ON privacy_erased (visitor_id);

-- It names visitors, but no order by visitor reaches it: an erasure must not forget the one before.
INSERT INTO privacy_table (name, kind, day_column, subject_column, via, own_columns, via_columns, returning_rows, partition_of, drop_function) VALUES
    ('privacy_erased', 'ad_use', 'erased_day', NULL, NULL, NULL, NULL, 'each', 'day', 'privacy_day_drop');

DO $$ BEGIN
    EXECUTE format('REVOKE DELETE, TRUNCATE ON privacy_erased FROM %I', current_database());
END $$;

-- migrate: rollback
