-- what the query for addresses at threat level `none` asks (D1, R-C3)
-- depends: privacy_0009_drop_moment

-- migrate: apply
SET lock_timeout = '5s';

-- Whether addresses are to go at once: an order of late, carried out or waiting, took the day under way as well.
CREATE FUNCTION privacy_threat_is_none() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM retention_done
        WHERE kind = 'ip_address' AND action IN ('drop', 'anonymise')
          AND done_at > now() - interval '150 minutes'
          AND before_day > (done_at AT TIME ZONE 'UTC')::date
        UNION ALL
        SELECT FROM retention_later
        WHERE content ->> 'kind' = 'ip_address' AND content ->> 'action' IN ('drop', 'anonymise')
          AND (content ->> 'before_day')::date > (received_at AT TIME ZONE 'UTC')::date)
$$;

-- When a server-issued id (UUIDv7) was made.
CREATE FUNCTION privacy_made_at(id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
$$;

DO $$ BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION privacy_threat_is_none(), privacy_made_at(uuid) TO %I', current_database());
END $$;

-- migrate: rollback
