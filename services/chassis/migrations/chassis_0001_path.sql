-- the path of a message: offset fence, outbox with its cursor, day partitions; safe beside nothing older
-- depends:

-- migrate: apply
SET lock_timeout = '5s';

-- The truth about what was consumed: moved in the transaction of the effect (hot-path.md 6).
CREATE TABLE consumer_offset (
    topic text NOT NULL,
    part int NOT NULL,
    next_offset bigint NOT NULL CONSTRAINT consumer_offset_not_negative_ck CHECK (next_offset >= 0),
    CONSTRAINT consumer_offset_pk PRIMARY KEY (topic, part)
) WITH (fillfactor = 50);

-- Events on their way to Kafka. The cursor is (txid, id) behind the xmin fence: an id alone, or a
-- txid alone, skips rows that commit late (reproduced in hot-path.md 1i).
CREATE SEQUENCE outbox_id_seq;
CREATE TABLE outbox (
    id bigint NOT NULL DEFAULT nextval('outbox_id_seq'),
    txid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    created_at timestamptz NOT NULL DEFAULT now(),
    topic text NOT NULL,
    key bytea,
    headers bytea NOT NULL,
    payload bytea,
    CONSTRAINT outbox_pk PRIMARY KEY (txid, id, created_at)
) PARTITION BY RANGE (created_at);

CREATE TABLE outbox_cursor (
    single boolean NOT NULL DEFAULT true CONSTRAINT outbox_cursor_single_ck CHECK (single),
    txid xid8 NOT NULL,
    id bigint NOT NULL,
    CONSTRAINT outbox_cursor_pk PRIMARY KEY (single)
);
INSERT INTO outbox_cursor (txid, id) VALUES ('0', 0);

-- Partitions are made and dropped by the owner's functions, so that the service's role needs no
-- right to change tables. LIKE + ATTACH, not PARTITION OF: it takes a weaker lock on the parent.
CREATE FUNCTION chassis_range_add(parent text, child text, lower_bound text, upper_bound text)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    named text;
BEGIN
    IF to_regclass(format('%I', child)) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('chassis_range_add'));
    IF to_regclass(format('%I', child)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent);
    -- The planner's statistics are copies of values that outlive the partition in pg_statistic's
    -- pages (seen): none are taken of columns that may name a person.
    FOR named IN
        SELECT attname FROM pg_attribute
        WHERE attrelid = format('%I', child)::regclass AND attnum > 0
          AND atttypid IN ('uuid'::regtype, 'text'::regtype, 'inet'::regtype, 'jsonb'::regtype,
                           'bytea'::regtype)
    LOOP
        EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET STATISTICS 0', child, named);
    END LOOP;
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   parent, child, lower_bound, upper_bound);
    -- by its own name a partition would be open to what is revoked from the parent (append-only)
    EXECUTE format('REVOKE ALL ON %I FROM %I', child, current_database());
    RETURN true;
END $$;
DO $$ BEGIN
    EXECUTE format('REVOKE ALL ON FUNCTION chassis_range_add(text, text, text, text) FROM PUBLIC, %I',
                   current_database());
END $$;

CREATE FUNCTION chassis_day_add(parent text, day date)
RETURNS boolean LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT chassis_range_add(parent, parent || to_char(day, '"_y"YYYY"m"MM"d"DD'),
                             day::text, (day + 1)::text)
$$;

-- Drops every day partition of the parent before a day; the rows are counted in the same lock.
CREATE FUNCTION chassis_day_drop(parent text, before date)
RETURNS TABLE (partition text, n_rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    child text;
BEGIN
    FOR child IN
        SELECT c.relname FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        JOIN pg_class p ON p.oid = i.inhparent
        WHERE p.relname = parent AND p.relnamespace = 'public'::regnamespace
          AND c.relname ~ '_y[0-9]{4}m[0-9]{2}d[0-9]{2}$'
          AND to_date(right(c.relname, 11), '"y"YYYY"m"MM"d"DD') < before
        ORDER BY c.relname
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', child);
        EXECUTE format('SELECT count(*) FROM %I', child) INTO n_rows;
        EXECUTE format('DROP TABLE %I', child);
        partition := child;
        RETURN NEXT;
    END LOOP;
END $$;

-- Drops the hours that are wholly behind the cursor and ended an hour before `as_of`, and makes the
-- present hour's partition and the next three. `as_of` is now, but for a stack that is a simulation.
CREATE FUNCTION chassis_outbox_maintain(as_of timestamptz DEFAULT now())
RETURNS int LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    hour timestamptz;
    child text;
    has_unsent boolean;
    n_dropped int := 0;
BEGIN
    FOR child IN
        SELECT c.relname FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        JOIN pg_class p ON p.oid = i.inhparent
        WHERE p.relname = 'outbox' AND p.relnamespace = 'public'::regnamespace
          AND to_timestamp(right(c.relname, 14) || '+00', '"y"YYYY"m"MM"d"DD"h"HH24TZH')
              < as_of - interval '2 hours'
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', child);
        EXECUTE format('SELECT EXISTS (SELECT FROM %I o, outbox_cursor c
                        WHERE (o.txid, o.id) > (c.txid, c.id))', child) INTO has_unsent;
        IF NOT has_unsent THEN
            EXECUTE format('DROP TABLE %I', child);
            n_dropped := n_dropped + 1;
        END IF;
    END LOOP;
    FOR hour IN SELECT generate_series(date_trunc('hour', now(), 'UTC'),
                                       date_trunc('hour', now(), 'UTC') + interval '3 hours',
                                       interval '1 hour')
    LOOP
        PERFORM chassis_range_add(
            'outbox', 'outbox' || to_char(hour AT TIME ZONE 'UTC', '"_y"YYYY"m"MM"d"DD"h"HH24'),
            to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS+00'),
            to_char((hour + interval '1 hour') AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS+00'));
    END LOOP;
    RETURN n_dropped;
END $$;

SELECT chassis_outbox_maintain();

-- migrate: rollback
