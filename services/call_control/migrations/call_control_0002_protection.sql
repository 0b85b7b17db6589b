-- which columns say whose a row is; a live call cannot be erased
-- depends: call_control_0001_calls privacy_0003_protection

-- migrate: apply
SET lock_timeout = '5s';

INSERT INTO privacy_table (name, kind, day_column, subject_column, via, own_columns, via_columns, returning_rows, partition_of, drop_function) VALUES
    ('call', 'traffic_data', 'call_day', 'visitor_id', NULL, NULL, NULL, 'together', 'day', 'privacy_day_drop'),
    ('call_leg', 'traffic_data', 'call_day', NULL, 'call', '{call_day,call_id}', '{call_day,call_id}', 'together', 'day', 'privacy_day_drop'),
    ('call_order', 'traffic_data', 'call_day', NULL, 'call', '{call_day,call_id}', '{call_day,call_id}', 'together', 'day', 'privacy_day_drop'),
    ('call_address', 'ip_address', 'address_day', NULL, 'call', '{address_day,call_id}', '{call_day,call_id}', 'together', 'day', 'privacy_day_drop');

-- C3: an erasure waits for calls to end, but one may begin between its look and the DELETE. A
-- serialization failure: the order is tried again, and finds the call.
CREATE FUNCTION call_lives() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a live call cannot be erased; it must end first'
        USING ERRCODE = 'serialization_failure';
END $$;
CREATE TRIGGER call_is_over BEFORE DELETE ON call
    FOR EACH ROW WHEN (OLD.state NOT IN ('refused', 'ended')) EXECUTE FUNCTION call_lives();

-- rows go by orders only, past what is held (D2)
DO $$ BEGIN
    EXECUTE format('REVOKE DELETE, TRUNCATE ON call, call_leg, call_order, call_address FROM %I', current_database());
END $$;

-- migrate: rollback
