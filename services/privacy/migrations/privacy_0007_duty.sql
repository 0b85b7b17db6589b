-- what a hold or restriction keeps is read by the role of the legal duty only, after the access log says so (R-D6, R-C5)
-- depends: privacy_0005_erased

-- migrate: apply
SET lock_timeout = '5s';

-- Which protection's store is read.
ALTER TABLE access_log ADD COLUMN protection_id uuid;

-- What a protection keeps. The access must stand in the log already, committed, and say of which
-- protection: whoever reads and rolls back has been seen all the same.
CREATE FUNCTION privacy_kept_read(of_protection uuid, by_access uuid)
RETURNS TABLE (source text, row_day date, content jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    begun record;
BEGIN
    -- also a row of a savepoint would count for us, and go with our rollback
    IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = 'the access must be logged in a transaction of its own';
    END IF;
    SELECT a.kind, a.accessed_at INTO begun FROM access_log a
    WHERE a.access_id = by_access AND a.step = 'begun' AND a.protection_id = of_protection
      AND a.accessed_on >= current_date - 2;
    IF NOT FOUND OR begun.accessed_at NOT BETWEEN now() - interval '5 minutes' AND now() + interval '5 minutes' THEN
        RAISE insufficient_privilege USING MESSAGE = 'no access was logged for this reading';
    END IF;
    IF EXISTS (SELECT FROM access_log a WHERE a.access_id = by_access AND a.step = 'answered'
               AND a.accessed_on >= current_date - 2) THEN
        RAISE insufficient_privilege USING MESSAGE = 'that access was answered already';
    END IF;
    RETURN QUERY
        SELECT k.source, k.row_day, k.content FROM privacy_kept k
        JOIN privacy_table t ON t.name = k.source
        WHERE k.protection_id = of_protection AND t.kind = begun.kind
        ORDER BY k.row_day, k.source, k.row_key;
END $$;

DO $$
DECLARE
    duty text := current_database() || '_duty';
BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION privacy_kept_read(uuid, uuid) FROM PUBLIC, %I', current_database());
    EXECUTE format('GRANT EXECUTE ON FUNCTION privacy_kept_read(uuid, uuid), access_log_maintain(timestamptz) TO %I', duty);
    EXECUTE format('GRANT INSERT ON access_log TO %I', duty);
END $$;

-- migrate: rollback
