-- orders reach the access log too, through the owner's functions only
-- depends: privacy_0002_access_log privacy_0003_protection

-- migrate: apply
SET lock_timeout = '5s';

-- An entry names nobody whom it is about, and hangs on no other row: only a hold of its kind and days reaches it.
INSERT INTO privacy_table (name, kind, day_column, subject_column, via, own_columns, via_columns, returning_rows, partition_of, drop_function) VALUES
    ('access_log', 'access_log', 'accessed_on', NULL, NULL, NULL, NULL, 'together', 'year', 'access_log_drop');

DO $$ BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION access_log_drop(text, date) FROM PUBLIC, %I', current_database());
END $$;

-- migrate: rollback
