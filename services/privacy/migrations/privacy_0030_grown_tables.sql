-- what was set aside comes back into a table that has grown meanwhile, its new columns as for any older row (R-G4, D2)
-- depends: privacy_0003_protection privacy_0011_watch

-- migrate: apply
SET lock_timeout = '5s';

-- An expression of a table's defaults as jsonb: what a row of before a column was added has in it.
CREATE FUNCTION privacy_defaults_sql(of_table text) RETURNS text LANGUAGE sql STABLE
AS $$
    SELECT coalesce(string_agg(format('jsonb_build_object(%L, %s)', a.attname,
                                      pg_get_expr(d.adbin, d.adrelid)), ' || ' ORDER BY a.attnum), '''{}''::jsonb')
    FROM pg_attribute a JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    WHERE a.attrelid = format('%I', of_table)::regclass AND a.attgenerated = ''
$$;

CREATE OR REPLACE FUNCTION privacy_give_back(t privacy_table, id uuid, before date, overtaken uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    which text := 'privacy_may_return(k, $2)';
    first_only text := '';
BEGIN
    IF t.returning_rows = 'together' THEN
        which := which || ' AND k.visitor_id <> ALL($3)';
    ELSIF t.returning_rows = 'one' THEN
        -- whoever is about to add a row of that visitor has looked for one first: let them finish
        EXECUTE format('LOCK TABLE %I IN EXCLUSIVE MODE', t.name);
        first_only := 'DISTINCT ON (k.visitor_id)';
        which := which || format(' AND NOT EXISTS (SELECT FROM %I o WHERE o.%I = k.visitor_id)', t.name, t.subject_column);
    END IF;
    -- without the defaults a new column would be null, and where it may not be, nobody could release
    EXECUTE format('INSERT INTO %1$I SELECT (jsonb_populate_record(NULL::%1$I, %4$s || b.content)).* FROM (
                        SELECT %2$s k.content FROM privacy_kept k
                        WHERE k.protection_id = $1 AND k.source = %1$L AND %3$s
                        ORDER BY k.visitor_id, k.row_day) b
                    ON CONFLICT DO NOTHING', t.name, first_only, which, privacy_defaults_sql(t.name))
        USING id, before, overtaken;
END $$;

-- Newer rows are those that differ in what the copies know of: a column of later says nothing about that.
CREATE OR REPLACE FUNCTION privacy_overtaken(id uuid) RETURNS uuid[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    t privacy_table;
    found uuid[];
    overtaken uuid[] := '{}';
BEGIN
    FOR t IN SELECT * FROM privacy_table WHERE returning_rows = 'together' LOOP
        EXECUTE format('SELECT coalesce(array_agg(DISTINCT k.visitor_id), ''{}'') FROM %s AND NOT to_jsonb(t) @> k.content',
                       privacy_live_sql(t.name)) INTO found USING id;
        overtaken := overtaken || found;
    END LOOP;
    RETURN overtaken;
END $$;

DO $$ BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION privacy_defaults_sql(text) FROM PUBLIC, %I', current_database());
END $$;

-- migrate: rollback
