-- erases the visitors of many orders at once: what an order costs is mostly the statements, not the rows
-- depends: privacy_0005_erased

-- migrate: apply
SET lock_timeout = '5s';

-- As privacy_take for an erasure, for many orders: `orders` holds, place by place, which one a visitor
-- belongs to; each visitor stands there once. Counts are by order, tables without rows included.
CREATE FUNCTION privacy_erase(names text[], visitors uuid[], orders uuid[], before date)
RETURNS TABLE (order_id uuid, source text, n_rows bigint, n_held bigint, n_restricted bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    t privacy_table;
BEGIN
    FOR t IN SELECT p.* FROM privacy_table p
             WHERE (p.name = ANY(names) OR p.via = ANY(names)) AND coalesce(p.subject_column, p.via) IS NOT NULL
             ORDER BY p.via IS NULL, p.name LOOP
        UPDATE privacy_kept k SET is_due = true, order_id = g.order_id
        FROM unnest(visitors, orders) AS g (visitor_id, order_id)
        WHERE k.source = t.name AND k.row_day < before AND NOT k.is_due AND k.visitor_id = g.visitor_id;
        RETURN QUERY EXECUTE format($sql$
            WITH met AS (%s), covered AS (
                SELECT m.*, p.protection_id FROM met m JOIN privacy_protection p
                ON privacy_covers(p, $4, m.row_day, m.visitor_id)
            ), kept AS (
                INSERT INTO privacy_kept AS k
                SELECT c.protection_id, %L, c.row_key, c.row_day, c.visitor_id, c.content, true, g.order_id
                FROM covered c JOIN unnest($1, $3) AS g (visitor_id, order_id) USING (visitor_id)
                ON CONFLICT (protection_id, source, row_key) DO UPDATE
                SET content = excluded.content, is_due = true, order_id = excluded.order_id
            ), gone AS (
                SELECT visitor_id, count(*) AS n FROM met m
                WHERE NOT EXISTS (SELECT FROM covered c WHERE c.row_key = m.row_key)
                GROUP BY visitor_id
            )
            SELECT g.order_id, %L::text, coalesce(sum(gone.n), 0)::bigint, 0::bigint, 0::bigint
            FROM unnest($1, $3) AS g (visitor_id, order_id) LEFT JOIN gone USING (visitor_id)
            GROUP BY g.order_id
            $sql$, privacy_rows_sql(t, 'DELETE'), t.name, t.name) USING visitors, before, orders, t.kind;
        RETURN QUERY
            SELECT k.order_id, t.name, 0::bigint,
                   count(DISTINCT k.row_key) FILTER (WHERE NOT p.is_restriction),
                   count(DISTINCT k.row_key) FILTER (WHERE p.is_restriction)
            FROM privacy_kept k JOIN privacy_protection p USING (protection_id)
            WHERE k.source = t.name AND k.order_id = ANY(orders)
            GROUP BY k.order_id;
    END LOOP;
END $$;

-- migrate: rollback
