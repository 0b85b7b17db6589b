-- a hold of everybody is in force at once; what others keep of its rows is copied later, before a release may take it (D2)
-- depends: privacy_0040_unseen_orders

-- migrate: apply
SET lock_timeout = '5s';

-- In force, but has no copies yet of what others keep.
ALTER TABLE privacy_protection ADD COLUMN lacks_copies boolean NOT NULL DEFAULT false;

-- Gives a protection its copies of what others keep of its own; they are of an order, or (null) as those of the others.
CREATE FUNCTION privacy_copy_kept(id uuid, by_order uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    placed privacy_protection;
BEGIN
    SELECT * INTO STRICT placed FROM privacy_protection WHERE protection_id = id;
    INSERT INTO privacy_kept
    SELECT DISTINCT ON (k.source, k.row_key)
           id, k.source, k.row_key, k.row_day, k.visitor_id, k.content, k.is_due, coalesce(by_order, k.order_id)
    FROM privacy_kept k JOIN privacy_table t ON t.name = k.source
    WHERE k.protection_id <> id AND privacy_covers(placed, t.kind, k.row_day, k.visitor_id)
    ORDER BY k.source, k.row_key, k.is_due
    ON CONFLICT DO NOTHING;
    UPDATE privacy_protection SET lacks_copies = false WHERE protection_id = id AND lacks_copies;
END $$;

-- Places a hold of everybody's rows and nothing else: quick, whatever others keep.
CREATE FUNCTION privacy_place(id uuid, of_kinds text[], since date, before date, at timestamptz)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM privacy_list_add('privacy_kept', id);
    INSERT INTO privacy_protection
        (protection_id, is_restriction, kinds, from_day, before_day, names_visitors, placed_at, lacks_copies)
    VALUES (id, false, of_kinds, since, before, false, at, true) ON CONFLICT DO NOTHING;
END $$;

CREATE OR REPLACE FUNCTION privacy_protect(
    id uuid, restricts boolean, of_kinds text[], since date, before date, visitors uuid[],
    by_order uuid, at timestamptz
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM privacy_list_add('privacy_kept', id);
    INSERT INTO privacy_protection (protection_id, is_restriction, kinds, from_day, before_day, names_visitors, placed_at)
    VALUES (id, restricts, of_kinds, since, before, visitors <> '{}', at) ON CONFLICT DO NOTHING;
    IF visitors <> '{}' THEN
        PERFORM privacy_list_add('privacy_visitor', id);
        INSERT INTO privacy_visitor SELECT id, unnest(visitors) ON CONFLICT DO NOTHING;
    END IF;
    PERFORM privacy_copy_kept(id, by_order);
END $$;

CREATE OR REPLACE FUNCTION privacy_release(id uuid, restricts boolean, before date, at timestamptz)
RETURNS TABLE (source text, n_rows bigint, n_spared bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    t privacy_table;
    overtaken uuid[];
    n_all bigint;
BEGIN
    -- what goes here may be all that there is for a hold that has not come to its copies
    PERFORM privacy_copy_kept(p.protection_id, NULL) FROM privacy_protection p
    WHERE p.lacks_copies AND p.released_at IS NULL AND p.protection_id <> id;
    overtaken := privacy_overtaken(id);
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

DO $$
BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION privacy_copy_kept(uuid, uuid) FROM PUBLIC, %I', current_database());
END $$;

-- migrate: rollback
