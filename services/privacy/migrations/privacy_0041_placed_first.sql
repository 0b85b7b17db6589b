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

-- What goes by a release may be all that there is for a hold that has not come to its copies.
ALTER FUNCTION privacy_release(uuid, boolean, date, timestamptz) RENAME TO privacy_release_copied;
ALTER FUNCTION privacy_release_copied(uuid, boolean, date, timestamptz) SECURITY INVOKER;
CREATE FUNCTION privacy_release(id uuid, restricts boolean, before date, at timestamptz)
RETURNS TABLE (source text, n_rows bigint, n_spared bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM privacy_copy_kept(p.protection_id, NULL) FROM privacy_protection p
    WHERE p.lacks_copies AND p.released_at IS NULL AND p.protection_id <> id;
    RETURN QUERY SELECT * FROM privacy_release_copied(id, restricts, before, at);
END $$;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['privacy_copy_kept(uuid, uuid)',
                                'privacy_release_copied(uuid, boolean, date, timestamptz)'] LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC, %I', name, current_database());
    END LOOP;
END $$;

-- migrate: rollback
