-- an hour of the outbox goes without standing in a queue for its lock, and without reading its rows
-- depends: chassis_0001_path

-- migrate: apply
SET lock_timeout = '5s';

-- Takes an hour and its parent for itself, which a drop needs; false: somebody had them all the time.
-- All are tried at once, again and again, and given back in between: nobody waits behind a queue.
CREATE FUNCTION chassis_lock_now(child text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    FOR attempt IN 1..250 LOOP
        BEGIN
            EXECUTE format('LOCK TABLE ONLY outbox, ONLY %I IN ACCESS EXCLUSIVE MODE NOWAIT', child);
            RETURN true;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.002);
        END;
    END LOOP;
    RETURN false;
END $$;

-- As before, but: whoever waits for a lock of a partition (beside a backup, say) makes the relay wait
-- behind it, so an hour that somebody reads stays until the next time; and the cursor's values stand
-- one by one, so that the index says whether a row is left (joined to it, the whole hour was read).
CREATE OR REPLACE FUNCTION chassis_outbox_maintain(as_of timestamptz DEFAULT now())
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
        CONTINUE WHEN NOT chassis_lock_now(child);
        EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE (txid, id) >
                        ((SELECT txid FROM outbox_cursor), (SELECT id FROM outbox_cursor)))', child)
            INTO has_unsent;
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

DO $$
BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION chassis_lock_now(text) FROM PUBLIC, %I', current_database());
END $$;

-- migrate: rollback
SELECT 1;
