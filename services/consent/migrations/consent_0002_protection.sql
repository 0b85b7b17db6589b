-- which columns say whose a row is; a year goes only past what is held
-- depends: consent_0001_record privacy_0003_protection

-- migrate: apply
SET lock_timeout = '5s';

-- A proof names no visitor and hangs on none (ADR 0013): only a hold of its kind and days reaches it.
INSERT INTO privacy_table (name, kind, day_column, subject_column, via, own_columns, via_columns, returning_rows, partition_of, drop_function) VALUES
    ('consent_subject', 'ad_use', 'subject_day', 'visitor_id', NULL, NULL, NULL, 'one', 'day', 'privacy_day_drop'),
    ('consent_record', 'consent_record', 'ends_on', NULL, NULL, NULL, NULL, 'together', 'year', 'consent_record_drop');

DO $$
BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION consent_record_drop(text, date) FROM PUBLIC, %I', current_database());
END $$;

-- migrate: rollback
