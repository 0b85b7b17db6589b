-- evidence goes when its rule allows and not before, counted in Berlin; the chain knows its years (R-D9, R-D10)
-- depends: retention_0030_chain

-- migrate: apply
SET lock_timeout = '5s';

-- The first day whose evidence stays at an instant: the end of the third calendar year after (R-D10). The schedule has
-- the same rule as data; a test holds both against each other. Here it binds whoever works as the service.
CREATE FUNCTION retention_evidence_before(as_of timestamptz) RETURNS date
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT make_date(extract(year FROM as_of AT TIME ZONE 'Europe/Berlin')::int - 3, 1, 1)
$$;

-- The instant at which a day begins in Berlin, if what is of before it may go by now.
CREATE FUNCTION retention_evidence_cut(before date) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
BEGIN
    IF before IS NULL OR before > retention_evidence_before(now()) THEN
        RAISE EXCEPTION 'evidence of before % may not go: its rule allows what is of before %',
            before, retention_evidence_before(now()) USING ERRCODE = 'check_violation';
    END IF;
    RETURN before::timestamp AT TIME ZONE 'Europe/Berlin';
END $$;

-- What evidence of an order is youngest counts: no receipt goes before its own time.
CREATE OR REPLACE FUNCTION retention_evidence_drop(before date) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    cut constant timestamptz := retention_evidence_cut(before);
    due uuid[];
    gone uuid[];
BEGIN
    SELECT coalesce(array_agg(o.order_id), '{}') INTO due FROM retention_order o
    JOIN retention_completion c USING (order_id)
    WHERE o.issued_at < cut AND c.completed_at < cut
      AND NOT EXISTS (SELECT FROM retention_receipt t WHERE t.order_id = o.order_id AND t.received_at >= cut)
      AND NOT EXISTS (
        SELECT FROM retention_person_order p JOIN retention_protection_step s USING (protection_id)
        WHERE p.order_id = o.order_id AND s.step = 'placed' AND NOT EXISTS (
            SELECT FROM retention_protection_step r
            WHERE r.protection_id = p.protection_id AND r.step = 'released'));
    WITH refused AS (DELETE FROM retention_refusal WHERE refused_at < cut RETURNING refusal_id)
    SELECT coalesce(array_agg(refusal_id), '{}') INTO gone FROM refused;
    DELETE FROM retention_chain_salt s USING retention_chain c
    WHERE c.seq = s.seq AND (c.ref = ANY(due) OR c.ref = ANY(gone));
    DELETE FROM retention_record_order WHERE order_id = ANY(due);
    DELETE FROM retention_names_gone WHERE order_id = ANY(due);
    DELETE FROM retention_person_order WHERE order_id = ANY(due);
    DELETE FROM retention_completion WHERE order_id = ANY(due);
    DELETE FROM retention_receipt WHERE order_id = ANY(due);
    DELETE FROM retention_sweep_order WHERE order_id = ANY(due);
    DELETE FROM retention_order WHERE order_id = ANY(due);
    DELETE FROM retention_sweep w WHERE w.swept_at < cut
      AND NOT EXISTS (SELECT FROM retention_sweep_order o WHERE o.sweep_id = w.sweep_id);
    RETURN cardinality(due) + cardinality(gone);
END $$;

CREATE OR REPLACE FUNCTION retention_record_drop(before date) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    cut constant timestamptz := retention_evidence_cut(before);
    due uuid[];
BEGIN
    SELECT coalesce(array_agg(r.record_id), '{}') INTO due FROM retention_record r
    WHERE r.first_told_at < cut
      AND NOT EXISTS (SELECT FROM retention_record_event e WHERE e.record_id = r.record_id AND e.told_at >= cut)
      AND NOT EXISTS (SELECT FROM retention_record_due d WHERE d.record_id = r.record_id)
      AND NOT EXISTS (SELECT FROM retention_record_order o WHERE o.record_id = r.record_id);
    DELETE FROM retention_record_event WHERE record_id = ANY(due);
    DELETE FROM retention_record WHERE record_id = ANY(due);
    RETURN cardinality(due);
END $$;

-- A link of its own where a year begins: so a missing salt can be told to be missing too early.
ALTER TABLE retention_chain DROP CONSTRAINT retention_chain_what_ck;
ALTER TABLE retention_chain ADD CONSTRAINT retention_chain_what_ck
    CHECK (what IN ('year', 'order', 'person_order', 'receipt', 'refusal'));

-- migrate: rollback
