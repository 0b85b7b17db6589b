-- who of the staff read which kind of personal data, why, and how much: appended, never changed (R-C5)
-- depends: privacy_0001_retention_done

-- migrate: apply
SET lock_timeout = '5s';

-- Two rows an access: `begun` before anything is read, `answered` before it is handed out. One
-- without the other is an access that failed, and may have been seen nevertheless.
CREATE TABLE access_log (
    accessed_on date NOT NULL,
    access_id uuid NOT NULL,
    step text NOT NULL CONSTRAINT access_log_step_ck CHECK (step IN ('begun', 'answered')),
    staff_id text NOT NULL CONSTRAINT access_log_staff_id_ck CHECK (staff_id ~ '^staff-[0-9]{1,6}$'),
    reason text NOT NULL CONSTRAINT access_log_reason_ck CHECK (reason IN
        ('person_request', 'authority_request', 'legal_claim', 'security_incident', 'fault')),
    case_number text CONSTRAINT access_log_case_number_ck
        CHECK (case_number ~ '^[A-Z]{2,8}-20[0-9]{2}-[0-9]{1,5}$'),
    kind text NOT NULL,
    -- keyed hash of the number, address or visitor looked for; NULL = it was about nobody in particular
    subject text CONSTRAINT access_log_subject_ck CHECK (subject IN ('number', 'address', 'visitor')),
    subject_hash bytea CONSTRAINT access_log_subject_hash_ck CHECK (length(subject_hash) = 32),
    n_rows bigint CONSTRAINT access_log_n_rows_ck CHECK (n_rows >= 0),
    accessed_at timestamptz NOT NULL,
    CONSTRAINT access_log_pk PRIMARY KEY (accessed_on, access_id, step),
    CONSTRAINT access_log_subject_whole_ck CHECK ((subject IS NULL) = (subject_hash IS NULL)),
    CONSTRAINT access_log_counted_ck CHECK ((step = 'answered') = (n_rows IS NOT NULL))
) PARTITION BY RANGE (accessed_on);

DO $$
BEGIN
    EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON access_log FROM %I', current_database());
END
$$;

-- One partition a year, by Berlin's calendar (R-D9, R-D10): that of an instant and the next one.
CREATE FUNCTION access_log_maintain(as_of timestamptz)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    year int := extract(year FROM as_of AT TIME ZONE 'Europe/Berlin')::int;
    n int;
BEGIN
    -- a wrong clock must not make partitions without end
    IF abs(extract(epoch FROM as_of - now())) > 366 * 86400 THEN
        RAISE EXCEPTION 'the instant of an access is a year from now';
    END IF;
    FOR n IN 0..1 LOOP
        PERFORM chassis_range_add('access_log', 'access_log_y' || year + n,
                                  make_date(year + n, 1, 1)::text, make_date(year + n + 1, 1, 1)::text);
    END LOOP;
END
$$;
SELECT access_log_maintain(now());

-- Drops every year that lies wholly before a day.
CREATE FUNCTION access_log_drop(parent text, before date)
RETURNS TABLE (partition text, n_rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    child text;
BEGIN
    ASSERT parent = 'access_log';
    FOR child IN
        SELECT c.relname FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'access_log'::regclass
          AND make_date(right(c.relname, 4)::int + 1, 1, 1) <= before
        ORDER BY c.relname
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', child);
        EXECUTE format('SELECT count(*) FROM %I', child) INTO n_rows;
        EXECUTE format('DROP TABLE %I', child);
        partition := child;
        RETURN NEXT;
    END LOOP;
END
$$;

-- migrate: rollback
