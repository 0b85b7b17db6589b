-- which columns say whose a row is; what is open cannot be erased
-- depends: ad_ledger_0001_ledger privacy_0003_protection

-- migrate: apply
SET lock_timeout = '5s';

INSERT INTO privacy_table (name, kind, day_column, subject_column, via, own_columns, via_columns, returning_rows, partition_of, drop_function) VALUES
    ('lot', 'ad_use', 'lot_day', 'visitor_id', NULL, NULL, NULL, 'together', 'day', 'privacy_day_drop'),
    ('posting', 'ad_use', 'lot_day', 'visitor_id', NULL, NULL, NULL, 'together', 'day', 'privacy_day_drop'),
    ('ad_view', 'ad_use', 'view_day', 'visitor_id', NULL, NULL, NULL, 'together', 'day', 'privacy_day_drop'),
    ('visitor_watch', 'ad_use', 'watch_day', 'visitor_id', NULL, NULL, NULL, 'each', 'day', 'privacy_day_drop'),
    ('reservation', 'ad_use', 'reservation_day', 'visitor_id', NULL, NULL, NULL, 'together', 'day', 'privacy_day_drop'),
    ('reservation_share', 'ad_use', 'reservation_day', NULL, 'reservation', '{reservation_day,reservation_id}', '{reservation_day,reservation_id}', 'together', 'day', 'privacy_day_drop'),
    ('ad_view_address', 'ip_address', 'address_day', NULL, 'ad_view', '{address_day,ticket_id}', '{view_day,ticket_id}', 'together', 'day', 'privacy_day_drop');

-- L1: an erasure settles first, but credit may be earned or reserved between that and the DELETE.
-- A serialization failure: the order is tried again, and settles what is new.
CREATE FUNCTION ledger_keeps_open_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'open credit cannot be erased; settle it first'
        USING ERRCODE = 'serialization_failure';
END $$;
CREATE TRIGGER lot_is_settled BEFORE DELETE ON lot
    FOR EACH ROW WHEN (OLD.available_ms > 0 OR OLD.reserved_ms > 0) EXECUTE FUNCTION ledger_keeps_open_rows();
CREATE TRIGGER reservation_is_over BEFORE DELETE ON reservation
    FOR EACH ROW WHEN (OLD.state = 'held') EXECUTE FUNCTION ledger_keeps_open_rows();

-- rows go by orders only, past what is held (D2)
DO $$ BEGIN
    EXECUTE format('REVOKE DELETE, TRUNCATE ON visitor_watch FROM %I', current_database());
END $$;

-- migrate: rollback
