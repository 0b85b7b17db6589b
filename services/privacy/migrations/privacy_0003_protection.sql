-- holds, restrictions, the store of what they keep, orders that wait; rows go through the owner's functions only
-- depends: privacy_0001_retention_done

-- migrate: apply
SET lock_timeout = '5s';

-- Functions without SECURITY DEFINER are parts of those with it: the service may not call them.

-- Written by each service's own migration: what these functions may touch, and by which columns.
-- A test holds it against the service's TABLES.
CREATE TABLE privacy_table (
    name text NOT NULL,
    kind text NOT NULL,
    day_column text NOT NULL,
    -- the visitor's id; where a table has none, its rows hang on those of `via`
    subject_column text,
    via text CONSTRAINT privacy_table_via_fk REFERENCES privacy_table,
    own_columns text[],
    via_columns text[],
    -- how rows that were set aside come back beside newer ones (declare.Returning)
    returning_rows text NOT NULL CONSTRAINT privacy_table_returning_ck
        CHECK (returning_rows IN ('together', 'each', 'one')),
    -- what a partition holds, and the owner's function (parent, first day that stays) that drops them
    partition_of text NOT NULL CONSTRAINT privacy_table_partition_ck CHECK (partition_of IN ('day', 'year')),
    drop_function text NOT NULL,
    CONSTRAINT privacy_table_pk PRIMARY KEY (name),
    CONSTRAINT privacy_table_subject_ck CHECK (subject_column IS NULL OR via IS NULL),
    CONSTRAINT privacy_table_via_ck CHECK ((via IS NULL) = (own_columns IS NULL)
        AND cardinality(own_columns) IS NOT DISTINCT FROM cardinality(via_columns))
);

-- A hold or a restriction. It names no person: whom it is about is in a list that goes with it.
CREATE TABLE privacy_protection (
    protection_id uuid NOT NULL,
    is_restriction boolean NOT NULL,
    kinds text[] NOT NULL,
    from_day date,
    before_day date NOT NULL,
    names_visitors boolean NOT NULL,
    placed_at timestamptz NOT NULL,
    released_at timestamptz,
    CONSTRAINT privacy_protection_pk PRIMARY KEY (protection_id)
);

-- Lists of visitors: of a hold, of a restriction, or of an order that waits (its id). One partition
-- a list, so that its bytes go with it.
CREATE TABLE privacy_visitor (
    list_id uuid NOT NULL,
    visitor_id uuid NOT NULL,
    CONSTRAINT privacy_visitor_pk PRIMARY KEY (list_id, visitor_id)
) PARTITION BY LIST (list_id);

-- Rows that a hold or restriction keeps out of their tables, one copy for each that keeps them and
-- one partition for each: a release drops bytes, and a row lives until the last of them is over.
CREATE TABLE privacy_kept (
    protection_id uuid NOT NULL,
    source text NOT NULL,
    row_key jsonb NOT NULL,
    row_day date NOT NULL,
    visitor_id uuid,
    content jsonb NOT NULL,
    -- whether its own rule, or an erasure, would have ended it
    is_due boolean NOT NULL,
    -- the last order that met it
    order_id uuid NOT NULL,
    CONSTRAINT privacy_kept_pk PRIMARY KEY (protection_id, source, row_key)
) PARTITION BY LIST (protection_id);

-- Orders that wait for a call to end; the visitors they name are in a list of theirs.
CREATE TABLE retention_later (
    order_id uuid NOT NULL,
    content jsonb NOT NULL,
    received_at timestamptz NOT NULL,
    CONSTRAINT retention_later_pk PRIMARY KEY (order_id)
);

ALTER TABLE retention_done ADD COLUMN action text NOT NULL DEFAULT 'drop';

-- ------------------------------------------------------------------ lists, one partition each

CREATE FUNCTION privacy_list_name(parent text, id uuid) RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT parent || '_' || replace(id::text, '-', '') $$;

CREATE FUNCTION privacy_list_add(parent text, id uuid) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    child text := privacy_list_name(parent, id);
    named text;
BEGIN
    IF to_regclass(child) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent);
    -- the planner's statistics would outlive the rows (chassis_range_add)
    FOR named IN SELECT attname FROM pg_attribute WHERE attrelid = child::regclass AND attnum > 0 LOOP
        EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET STATISTICS 0', child, named);
    END LOOP;
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%L)', parent, child, id);
    EXECUTE format('REVOKE ALL ON %I FROM %I', child, current_database());
END $$;

CREATE FUNCTION privacy_list_drop(parent text, id uuid) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS %I', privacy_list_name(parent, id));
END $$;

-- Keeps an order's visitors while it waits, and forgets them afterwards. What is a protection's list
-- is not theirs to drop.
CREATE FUNCTION privacy_wait(order_id uuid, visitors uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM privacy_list_add('privacy_visitor', order_id);
    INSERT INTO privacy_visitor SELECT order_id, unnest(visitors) ON CONFLICT DO NOTHING;
END $$;

CREATE FUNCTION privacy_wait_end(waiting_id uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM privacy_protection WHERE protection_id = waiting_id) THEN
        RAISE EXCEPTION 'that list belongs to a hold or restriction';
    END IF;
    PERFORM privacy_list_drop('privacy_visitor', waiting_id);
END $$;

-- ------------------------------------------------------------------ who is protected

-- Whether a protection covers a row.
CREATE FUNCTION privacy_covers(p privacy_protection, kind text, day date, visitor uuid)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT p.released_at IS NULL AND kind = ANY(p.kinds)
        AND day < p.before_day AND (p.from_day IS NULL OR day >= p.from_day)
        AND (NOT p.names_visitors OR EXISTS (
            SELECT FROM privacy_visitor v
            WHERE v.list_id = p.protection_id AND v.visitor_id = visitor))
$$;

-- The visitors whom any protection of a kind names.
CREATE FUNCTION privacy_named(kind text) RETURNS uuid[] LANGUAGE sql STABLE
AS $$
    SELECT coalesce(array_agg(DISTINCT v.visitor_id), '{}')
    FROM privacy_visitor v JOIN privacy_protection p ON p.protection_id = v.list_id
    WHERE p.released_at IS NULL AND p.names_visitors AND kind = ANY(p.kinds)
$$;

CREATE FUNCTION privacy_is_open(of_kind text) RETURNS boolean LANGUAGE sql STABLE
AS $$
    SELECT EXISTS (SELECT FROM privacy_protection p WHERE p.released_at IS NULL
                   AND NOT p.names_visitors AND of_kind = ANY(p.kinds))
$$;

-- ------------------------------------------------------------------ statements on any table

-- `alias.column, ...`, quoted.
CREATE FUNCTION privacy_columns(alias text, columns text[]) RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT string_agg(format('%s.%I', alias, name), ', ' ORDER BY n)
      FROM unnest(columns) WITH ORDINALITY AS c (name, n) $$;

CREATE FUNCTION privacy_key(of_table text) RETURNS text[] LANGUAGE sql STABLE
AS $$
    SELECT array_agg(a.attname::text ORDER BY k.n)
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, n)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = format('%I', of_table)::regclass AND i.indisprimary
$$;

-- A DELETE ... RETURNING or a SELECT of a table's rows: content, row_key, row_day, visitor_id.
-- $1 = visitors (null: everybody's rows, for a SELECT only), $2 = first day that stays.
CREATE FUNCTION privacy_rows_sql(
    t privacy_table, verb text, of_everybody boolean DEFAULT false, only_if text DEFAULT NULL
) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    parent privacy_table;
    subject text := coalesce('t.' || quote_ident(t.subject_column), 'NULL::uuid');
    owners text := '';
    matches text := format('t.%I < $2', t.day_column);
    found text;
BEGIN
    IF t.via IS NOT NULL THEN
        SELECT * INTO STRICT parent FROM privacy_table WHERE name = t.via;
        subject := 'q.visitor_id';
        owners := format('(SELECT DISTINCT %s, p.%I AS visitor_id FROM %I p %s) q',
                         privacy_columns('p', t.via_columns), parent.subject_column, t.via,
                         CASE WHEN of_everybody THEN format('WHERE p.%I < $2', parent.day_column)
                              ELSE format('WHERE p.%I = ANY($1)', parent.subject_column) END);
        found := format('(%s) = (%s)', privacy_columns('t', t.own_columns),
                        privacy_columns('q', t.via_columns));
    ELSIF NOT of_everybody THEN
        matches := matches || format(' AND %s = ANY($1)', subject);
    END IF;
    subject := format('to_jsonb(t) AS content, jsonb_build_array(%s) AS row_key, t.%I AS row_day, %s AS visitor_id',
                      privacy_columns('t', privacy_key(t.name)), t.day_column, subject);
    IF verb = 'DELETE' THEN
        RETURN format('DELETE FROM %I t %s WHERE %s RETURNING %s', t.name,
                      'USING ' || nullif(owners, ''), concat_ws(' AND ', matches, found, only_if), subject);
    END IF;
    RETURN format('SELECT %s FROM %I t %s WHERE %s', subject, t.name,
                  CASE WHEN of_everybody THEN 'LEFT JOIN ' ELSE 'JOIN ' END || nullif(owners, '')
                  || ' ON ' || found, matches);
END $$;

-- What a statement of `privacy_rows_sql` finds is written to the store, a copy for each protection
-- that covers it. $3 = a restriction that keeps all of it, $4 = is_due, $5 = order, $6 = the kind.
CREATE FUNCTION privacy_keep_sql(rows_sql text, source text) RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT format($sql$
    WITH met AS (%s), covered AS (
        SELECT m.*, p.protection_id FROM met m JOIN privacy_protection p
        ON p.protection_id = $3 OR privacy_covers(p, $6, m.row_day, m.visitor_id)
    ), kept AS (
        INSERT INTO privacy_kept AS k
        SELECT protection_id, %L, row_key, row_day, visitor_id, content, $4, $5 FROM covered
        ON CONFLICT (protection_id, source, row_key) DO UPDATE
        SET content = excluded.content, is_due = k.is_due OR excluded.is_due, order_id = excluded.order_id
    )
    SELECT (SELECT count(*) FROM met), (SELECT count(DISTINCT row_key) FROM covered)
    $sql$, rows_sql, source) $$;

-- Rows of a table in the store that an order met, by hold and by restriction.
CREATE FUNCTION privacy_met(of_source text, of_order uuid, OUT n_held bigint, OUT n_restricted bigint)
LANGUAGE sql STABLE AS $$
    SELECT count(DISTINCT row_key) FILTER (WHERE NOT p.is_restriction),
           count(DISTINCT row_key) FILTER (WHERE p.is_restriction)
    FROM privacy_kept k JOIN privacy_protection p USING (protection_id)
    WHERE k.source = of_source AND k.order_id = of_order
$$;

-- What is in the store and falls due by this order stays, and is destroyed at the release.
CREATE FUNCTION privacy_mark_due(of_source text, before date, visitors uuid[], by_order uuid)
RETURNS void LANGUAGE sql AS $$
    UPDATE privacy_kept SET is_due = true, order_id = by_order
    WHERE source = of_source AND row_day < before AND NOT is_due
      AND (visitors IS NULL OR visitor_id = ANY(visitors))
$$;

-- ------------------------------------------------------------------ drop

-- Rows that hang on a table whose days are about to go, and that a protection covers by a visitor
-- whom nobody could find afterwards: they leave their table now, before they are due.
CREATE FUNCTION privacy_pin(t privacy_table, before date, by_order uuid) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    is_covered text := format('EXISTS (SELECT FROM privacy_protection g WHERE g.names_visitors
                               AND privacy_covers(g, $6, t.%I, q.visitor_id))', t.day_column);
BEGIN
    EXECUTE privacy_keep_sql(privacy_rows_sql(t, 'DELETE', false, is_covered), t.name)
        USING privacy_named(t.kind), before, NULL::uuid, false, by_order, t.kind;
END $$;

-- The day partitions of a table before a day.
CREATE FUNCTION privacy_days(of_table text, before date) RETURNS SETOF text LANGUAGE sql STABLE
AS $$
    SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = format('%I', of_table)::regclass
      AND c.relname ~ '_y[0-9]{4}m[0-9]{2}d[0-9]{2}$'
      AND to_date(right(c.relname, 11), '"y"YYYY"m"MM"d"DD') < before
    ORDER BY c.relname
$$;

-- Sets aside what is protected of a table's rows before a day; the rows themselves go with their
-- partitions. Returns how many rows there are and how many of them were set aside.
CREATE FUNCTION privacy_set_aside(t privacy_table, before date, by_order uuid, OUT n_all bigint, OUT n_kept bigint)
LANGUAGE plpgsql AS $$
DECLARE
    child text;
    n_met bigint;
    is_open boolean := privacy_is_open(t.kind);
    named uuid[] := privacy_named(t.kind);
BEGIN
    -- readers and writers of other days go on; whoever writes to these days waits for their end
    FOR child IN SELECT privacy_days(t.name, before) UNION ALL SELECT t.name WHERE t.partition_of = 'year' LOOP
        EXECUTE format('LOCK TABLE %I IN SHARE MODE', child);
    END LOOP;
    IF t.partition_of = 'year' THEN
        before := date_trunc('year', before::timestamp)::date;
    END IF;
    EXECUTE format('SELECT count(*) FROM %I WHERE %I < $1', t.name, t.day_column) INTO n_all USING before;
    n_kept := 0;
    IF is_open OR (named <> '{}' AND coalesce(t.subject_column, t.via) IS NOT NULL) THEN
        EXECUTE privacy_keep_sql(privacy_rows_sql(t, 'SELECT', is_open), t.name)
            INTO n_met, n_kept USING named, before, NULL::uuid, true, by_order, t.kind;
    END IF;
END $$;

-- Drops what is due of some tables, all of one kind. First all that takes time, then all that takes
-- locks that nobody can pass: no table is closed while another one is counted.
CREATE FUNCTION privacy_drop(names text[], before date, by_order uuid)
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

-- The last step for day tables: by now their rows are counted.
CREATE FUNCTION privacy_day_drop(of_table text, before date) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    child text;
BEGIN
    FOR child IN SELECT privacy_days(of_table, before) LOOP
        EXECUTE format('DROP TABLE %I', child);
        RETURN NEXT child;
    END LOOP;
END $$;

-- ------------------------------------------------------------------ erase, restrict

-- Takes visitors' rows out of tables, of days before a day: to the store where a protection covers
-- them (all of them to that of `restriction`, where given), else for good. What hangs on a row goes
-- where the row goes: without it nobody could find it by its person again.
CREATE FUNCTION privacy_take(names text[], visitors uuid[], before date, by_order uuid, restriction uuid)
RETURNS TABLE (source text, n_rows bigint, n_held bigint, n_restricted bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    t privacy_table;
    n_met bigint;
    n_kept bigint;
BEGIN
    FOR t IN SELECT p.* FROM privacy_table p
             WHERE (p.name = ANY(names) OR p.via = ANY(names)) AND coalesce(p.subject_column, p.via) IS NOT NULL
             ORDER BY p.via IS NULL, p.name LOOP
        source := t.name;
        IF restriction IS NULL THEN
            PERFORM privacy_mark_due(source, before, visitors, by_order);
        END IF;
        EXECUTE privacy_keep_sql(privacy_rows_sql(t, 'DELETE'), source)
            INTO n_met, n_kept USING visitors, before, restriction, restriction IS NULL, by_order, t.kind;
        n_rows := n_met - n_kept;
        SELECT m.n_held, m.n_restricted INTO n_held, n_restricted FROM privacy_met(source, by_order) m;
        RETURN NEXT;
    END LOOP;
END $$;

-- ------------------------------------------------------------------ hold, release

-- Places a protection, or adds visitors to it, and gives it copies of what others keep of its own.
CREATE FUNCTION privacy_protect(
    id uuid, restricts boolean, of_kinds text[], since date, before date, visitors uuid[],
    by_order uuid, at timestamptz
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    placed privacy_protection;
BEGIN
    PERFORM privacy_list_add('privacy_kept', id);
    INSERT INTO privacy_protection (protection_id, is_restriction, kinds, from_day, before_day, names_visitors, placed_at)
    VALUES (id, restricts, of_kinds, since, before, visitors <> '{}', at) ON CONFLICT DO NOTHING;
    IF visitors <> '{}' THEN
        PERFORM privacy_list_add('privacy_visitor', id);
        INSERT INTO privacy_visitor SELECT id, unnest(visitors) ON CONFLICT DO NOTHING;
    END IF;
    SELECT * INTO STRICT placed FROM privacy_protection WHERE protection_id = id;
    INSERT INTO privacy_kept
    SELECT DISTINCT ON (k.source, k.row_key)
           id, k.source, k.row_key, k.row_day, k.visitor_id, k.content, k.is_due, by_order
    FROM privacy_kept k JOIN privacy_table t ON t.name = k.source
    WHERE k.protection_id <> id AND privacy_covers(placed, t.kind, k.row_day, k.visitor_id)
    ORDER BY k.source, k.row_key, k.is_due
    ON CONFLICT DO NOTHING;
END $$;

-- How many rows a protection covers now, by table: live ones, and those that another one keeps.
CREATE FUNCTION privacy_count(id uuid) RETURNS TABLE (source text, n_rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    t privacy_table;
    p privacy_protection;
BEGIN
    SELECT * INTO STRICT p FROM privacy_protection WHERE protection_id = id;
    FOR t IN SELECT * FROM privacy_table WHERE kind = ANY(p.kinds) ORDER BY name LOOP
        CONTINUE WHEN p.names_visitors AND coalesce(t.subject_column, t.via) IS NULL;
        source := t.name;
        EXECUTE format($sql$
            SELECT count(*) FROM (
                SELECT row_key FROM (%s) live WHERE $3 IS NULL OR row_day >= $3
                UNION SELECT row_key FROM privacy_kept WHERE protection_id = $4 AND source = $5) met
            $sql$, privacy_rows_sql(t, 'SELECT', NOT p.names_visitors))
            INTO n_rows USING (SELECT coalesce(array_agg(visitor_id), '{}') FROM privacy_visitor WHERE list_id = id),
                              p.before_day, p.from_day, id, source;
        RETURN NEXT;
    END LOOP;
END $$;

-- Copies of a protection that may go back to their table: not due, in a day that still stands, and
-- not restricted by another one.
CREATE FUNCTION privacy_may_return(k privacy_kept, before date) RETURNS boolean LANGUAGE sql STABLE
AS $$
    SELECT NOT k.is_due AND k.row_day >= before
        AND to_regclass(format('%I', k.source || to_char(k.row_day, '"_y"YYYY"m"MM"d"DD'))) IS NOT NULL
        AND NOT EXISTS (
            SELECT FROM privacy_kept o JOIN privacy_protection p USING (protection_id)
            WHERE p.is_restriction AND p.released_at IS NULL AND o.protection_id <> k.protection_id
              AND (o.source, o.row_key) = (k.source, k.row_key))
$$;

-- A join of copies `k` of $1 with the live rows `t` of the same key.
CREATE FUNCTION privacy_live_sql(of_table text) RETURNS text LANGUAGE sql STABLE
AS $$
    SELECT format('privacy_kept k CROSS JOIN LATERAL jsonb_populate_record(NULL::%1$I, k.content) r
                   JOIN %1$I t ON (%2$s) = (%3$s) WHERE k.protection_id = $1 AND k.source = %1$L',
                  of_table, privacy_columns('t', privacy_key(of_table)),
                  privacy_columns('r', privacy_key(of_table)))
$$;

-- Visitors whose rows may not return together: newer ones have taken a key of theirs.
CREATE FUNCTION privacy_overtaken(id uuid) RETURNS uuid[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    t privacy_table;
    found uuid[];
    overtaken uuid[] := '{}';
BEGIN
    FOR t IN SELECT * FROM privacy_table WHERE returning_rows = 'together' LOOP
        EXECUTE format('SELECT coalesce(array_agg(DISTINCT k.visitor_id), ''{}'') FROM %s AND to_jsonb(t) <> k.content',
                       privacy_live_sql(t.name)) INTO found USING id;
        overtaken := overtaken || found;
    END LOOP;
    RETURN overtaken;
END $$;

CREATE FUNCTION privacy_give_back(t privacy_table, id uuid, before date, overtaken uuid[]) RETURNS void
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
    EXECUTE format('INSERT INTO %1$I SELECT (jsonb_populate_record(NULL::%1$I, b.content)).* FROM (
                        SELECT %2$s k.content FROM privacy_kept k
                        WHERE k.protection_id = $1 AND k.source = %1$L AND %3$s
                        ORDER BY k.visitor_id, k.row_day) b
                    ON CONFLICT DO NOTHING', t.name, first_only, which)
        USING id, before, overtaken;
END $$;

-- Ends a protection: what is not due goes back to its tables, the rest goes with the partition,
-- unless another protection keeps it. Days before `before` are due.
CREATE FUNCTION privacy_release(id uuid, restricts boolean, before date, at timestamptz)
RETURNS TABLE (source text, n_rows bigint, n_spared bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    t privacy_table;
    overtaken uuid[] := privacy_overtaken(id);
    n_all bigint;
BEGIN
    FOR t IN SELECT * FROM privacy_table ORDER BY via IS NOT NULL, name LOOP
        source := t.name;
        SELECT count(*) INTO n_all FROM privacy_kept k WHERE k.protection_id = id AND k.source = t.name;
        CONTINUE WHEN n_all = 0;
        PERFORM privacy_give_back(t, id, before, overtaken);
        EXECUTE format($sql$
            SELECT count(*) FROM (
                SELECT k.row_key FROM %s
                UNION SELECT k.row_key FROM privacy_kept k JOIN privacy_kept o USING (source, row_key)
                WHERE k.protection_id = $1 AND k.source = $2 AND o.protection_id <> $1) spared
            $sql$, privacy_live_sql(t.name)) INTO n_spared USING id, source;
        n_rows := n_all - n_spared;
        RETURN NEXT;
    END LOOP;
    -- also where it never came: an id that is over cannot begin any more
    INSERT INTO privacy_protection AS p (protection_id, is_restriction, kinds, before_day, names_visitors, placed_at, released_at)
    VALUES (id, restricts, '{}', before, false, at, at)
    ON CONFLICT (protection_id) DO UPDATE SET released_at = coalesce(p.released_at, excluded.released_at);
    PERFORM privacy_list_drop('privacy_kept', id), privacy_list_drop('privacy_visitor', id);
END $$;

-- ------------------------------------------------------------------ rights

-- The service places, takes and releases by the functions above and nothing else: it can neither
-- read what is kept nor drop a day past a hold.
DO $$
DECLARE
    name text;
    service text := current_database();
BEGIN
    FOREACH name IN ARRAY ARRAY['privacy_table', 'privacy_protection', 'privacy_visitor'] LOOP
        EXECUTE format('REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON %I FROM %I', name, service);
    END LOOP;
    EXECUTE format('REVOKE ALL ON privacy_kept FROM %I', service);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION chassis_day_drop(text, date) FROM PUBLIC, %I', service);
    FOR name IN SELECT p.oid::regprocedure::text FROM pg_proc p
                WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'privacy\_%'
                  AND p.proname NOT IN ('privacy_wait', 'privacy_wait_end', 'privacy_drop', 'privacy_take',
                                        'privacy_protect', 'privacy_count', 'privacy_release') LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC, %I', name, service);
    END LOOP;
END $$;

-- migrate: rollback
