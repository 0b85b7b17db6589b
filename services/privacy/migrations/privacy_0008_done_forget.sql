-- a service's own receipts go as retention's do: with the end of the third calendar year after the deed (R-D10)
-- depends: privacy_0001_retention_done

-- migrate: apply
SET lock_timeout = '5s';

CREATE INDEX retention_done_done_at ON retention_done (done_at);

CREATE FUNCTION privacy_done_forget(at timestamptz) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
        DELETE FROM retention_done
        -- never more than is due now, whatever the caller's clock says
        WHERE done_at < (date_trunc('year', least(at, now()) AT TIME ZONE 'Europe/Berlin') - interval '3 years')
                        AT TIME ZONE 'Europe/Berlin'
        RETURNING 1
    ) SELECT count(*) FROM gone
$$;

DO $$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION privacy_done_forget(timestamptz) TO %I', current_database());
END $$;

-- migrate: rollback
