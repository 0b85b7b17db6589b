-- records that other systems keep: opaque ids, words and dates only (R-D5b to R-D8, D4)
-- depends: retention_0001_orders

-- migrate: apply
SET lock_timeout = '5s';

CREATE TABLE retention_record (
    record_id uuid NOT NULL CONSTRAINT retention_record_pk PRIMARY KEY,
    kind text NOT NULL,
    document_class text,
    holder text NOT NULL,
    first_told_at timestamptz NOT NULL
);

-- `told` is the order of telling: of two words on the same thing the later one counts.
CREATE TABLE retention_record_event (
    event_id uuid NOT NULL CONSTRAINT retention_record_event_pk PRIMARY KEY,
    record_id uuid NOT NULL
        CONSTRAINT retention_record_event_record_fk REFERENCES retention_record,
    told bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    happened text NOT NULL,
    happened_on date NOT NULL,
    told_at timestamptz NOT NULL
);
CREATE INDEX retention_record_event_record_ix ON retention_record_event (record_id, told);

-- What follows from the two above and from the rule of the day; written anew when either changes,
-- gone when the record is.
CREATE TABLE retention_record_due (
    record_id uuid NOT NULL CONSTRAINT retention_record_due_pk PRIMARY KEY
        CONSTRAINT retention_record_due_record_fk REFERENCES retention_record,
    block_at timestamptz,
    delete_at timestamptz,
    rule_from date NOT NULL,
    schedule_version text NOT NULL,
    computed_at timestamptz NOT NULL
);
CREATE INDEX retention_record_due_block_ix ON retention_record_due (block_at);
CREATE INDEX retention_record_due_delete_ix ON retention_record_due (delete_at);

-- goes with the order that it is evidence of
CREATE TABLE retention_record_order (
    order_id uuid NOT NULL CONSTRAINT retention_record_order_order_fk
        REFERENCES retention_order ON DELETE CASCADE,
    record_id uuid NOT NULL
        CONSTRAINT retention_record_order_record_fk REFERENCES retention_record,
    deed text NOT NULL CONSTRAINT retention_record_order_deed_ck CHECK (deed IN ('block', 'delete')),
    CONSTRAINT retention_record_order_pk PRIMARY KEY (order_id, record_id)
);
CREATE INDEX retention_record_order_record_ix ON retention_record_order (record_id, deed);

-- Of records that their holders have deleted, once the evidence of that is gone too (R-D10).
CREATE FUNCTION retention_record_drop(before date) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    due uuid[];
BEGIN
    SELECT coalesce(array_agg(r.record_id), '{}') INTO due FROM retention_record r
    WHERE r.first_told_at < before
      AND NOT EXISTS (SELECT FROM retention_record_due d WHERE d.record_id = r.record_id)
      AND NOT EXISTS (SELECT FROM retention_record_order o WHERE o.record_id = r.record_id);
    DELETE FROM retention_record_event WHERE record_id = ANY(due);
    DELETE FROM retention_record WHERE record_id = ANY(due);
    RETURN cardinality(due);
END $$;

-- Evidence is appended, never changed.
DO $$
BEGIN
    EXECUTE format(
        'REVOKE UPDATE, DELETE, TRUNCATE ON retention_record, retention_record_event,
         retention_record_order FROM %I', current_database());
    EXECUTE format('REVOKE TRUNCATE ON retention_record_due FROM %I', current_database());
END
$$;

-- migrate: rollback
