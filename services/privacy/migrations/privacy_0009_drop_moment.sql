-- a drop takes its locks all at once, when nobody has them: who stands in a queue for a lock makes all others stand behind
-- depends: privacy_0003_protection

-- migrate: apply
SET lock_timeout = '5s';

-- Takes tables for itself, all or none, without ever standing in a queue; false: not in that time.
CREATE FUNCTION privacy_lock(names text[], try_for interval) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    listed text;
    begun_at timestamptz := clock_timestamp();
BEGIN
    SELECT string_agg(format('ONLY %I', n.name), ', ') INTO listed FROM unnest(names) AS n (name);
    LOOP
        BEGIN
            IF listed IS NOT NULL THEN
                EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', listed);
            END IF;
            RETURN true;
        EXCEPTION WHEN lock_not_available THEN
            -- what it had of them is given back
            IF clock_timestamp() - begun_at >= try_for THEN
                RETURN false;
            END IF;
        END;
        PERFORM pg_sleep(0.002);
    END LOOP;
END $$;

-- Drops what is due of some tables, all of one kind. First all that takes time, then all that takes
-- locks that nobody can pass: no table is closed while another one is counted. With `waits` it may
-- stand in the queue, for as long as lock_timeout says, where there was no good moment in `try_for`.
CREATE FUNCTION privacy_drop(names text[], before date, by_order uuid, try_for interval, waits boolean)
RETURNS TABLE (source text, n_partitions bigint, n_rows bigint, n_held bigint, n_restricted bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    t privacy_table;
    child text;
    gone jsonb := '{}';
    aside record;
BEGIN
    FOR t IN SELECT p.* FROM privacy_table p WHERE p.via = ANY(names) AND p.name <> ALL(names) LOOP
        PERFORM privacy_pin(t, before, by_order);
    END LOOP;
    FOR t IN SELECT p.* FROM privacy_table p WHERE p.name = ANY(names) LOOP
        SELECT * INTO aside FROM privacy_set_aside(t, before, by_order);
        gone := gone || jsonb_build_object(t.name, aside.n_all - aside.n_kept);
    END LOOP;
    IF NOT privacy_lock(names, try_for) AND NOT waits THEN
        RAISE lock_not_available USING MESSAGE = 'somebody had one of the tables all the time';
    END IF;
    FOREACH source IN ARRAY names LOOP
        SELECT p.* INTO STRICT t FROM privacy_table p WHERE p.name = source;
        PERFORM privacy_mark_due(source, before, NULL, by_order);
        EXECUTE format('SELECT count(*) FROM %I($1, $2)', t.drop_function) INTO n_partitions USING source, before;
        n_rows := (gone ->> source)::bigint;
        SELECT m.n_held, m.n_restricted INTO n_held, n_restricted FROM privacy_met(source, by_order) m;
        RETURN NEXT;
    END LOOP;
    FOR t IN SELECT p.* FROM privacy_table p WHERE p.via = ANY(names) AND p.name <> ALL(names) LOOP
        SELECT t.name, 0, 0, m.n_held, m.n_restricted
        INTO source, n_partitions, n_rows, n_held, n_restricted FROM privacy_met(t.name, by_order) m;
        IF n_held + n_restricted > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END $$;

-- As the version before calls it, which runs beside until it is rolled.
CREATE OR REPLACE FUNCTION privacy_drop(names text[], before date, by_order uuid)
RETURNS TABLE (source text, n_partitions bigint, n_rows bigint, n_held bigint, n_restricted bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT * FROM privacy_drop(names, before, by_order, interval '0', true)
$$;

DO $$
DECLARE
    service text := current_database();
BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION privacy_lock(text[], interval) FROM PUBLIC, %I', service);
    EXECUTE format('GRANT EXECUTE ON FUNCTION privacy_drop(text[], date, uuid, interval, boolean) TO %I', service);
END $$;

-- migrate: rollback
