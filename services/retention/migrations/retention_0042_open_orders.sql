-- open orders are sent again; an answer that will never come is waived by two persons, and shows as waived (D3, R-D9)
-- depends: retention_0041_protection_evidence

-- migrate: apply
SET lock_timeout = '5s';

-- By which schedule an order about persons was made; null of those from before this.
ALTER TABLE retention_person_order ADD COLUMN schedule_version text;

-- When an order was sent again, under its own id; with names only while a protection in force rests on them.
CREATE TABLE retention_reissue (
    order_id uuid NOT NULL CONSTRAINT retention_reissue_order_fk REFERENCES retention_order,
    sent_at timestamptz NOT NULL,
    has_names boolean NOT NULL,
    CONSTRAINT retention_reissue_pk PRIMARY KEY (order_id, sent_at)
);

-- Somebody wants to wait no longer for one holder's answer; the reason is of a closed list.
CREATE TABLE retention_waiver (
    waiver_id uuid NOT NULL CONSTRAINT retention_waiver_pk PRIMARY KEY,
    order_id uuid NOT NULL CONSTRAINT retention_waiver_order_fk REFERENCES retention_order,
    holder text NOT NULL,
    reason text NOT NULL,
    staff_id text NOT NULL,
    proposed_at timestamptz NOT NULL
);
CREATE INDEX retention_waiver_order_ix ON retention_waiver (order_id, holder);

-- It counts once another person has confirmed it, and once for each answer.
CREATE TABLE retention_waiver_confirmation (
    waiver_id uuid NOT NULL CONSTRAINT retention_waiver_confirmation_pk PRIMARY KEY
        CONSTRAINT retention_waiver_confirmation_fk REFERENCES retention_waiver,
    staff_id text NOT NULL,
    confirmed_at timestamptz NOT NULL
);

CREATE FUNCTION retention_waiver_four_eyes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    found retention_waiver;
BEGIN
    SELECT * INTO found FROM retention_waiver WHERE waiver_id = NEW.waiver_id;
    IF found.staff_id = NEW.staff_id THEN
        RAISE EXCEPTION 'the same person proposes and decides' USING ERRCODE = 'check_violation';
    END IF;
    IF EXISTS (SELECT FROM retention_waiver w JOIN retention_waiver_confirmation USING (waiver_id)
               WHERE w.order_id = found.order_id AND w.holder = found.holder)
       OR EXISTS (SELECT FROM retention_receipt r
                  WHERE r.order_id = found.order_id AND r.service = found.holder) THEN
        RAISE EXCEPTION 'that answer is there, or waived already' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER retention_waiver_four_eyes BEFORE INSERT ON retention_waiver_confirmation
    FOR EACH ROW EXECUTE FUNCTION retention_waiver_four_eyes();

ALTER TABLE retention_chain DROP CONSTRAINT retention_chain_what_ck;
ALTER TABLE retention_chain ADD CONSTRAINT retention_chain_what_ck
    CHECK (what IN ('year', 'order', 'person_order', 'receipt', 'refusal',
                    'protection', 'protection_step', 'review', 'review_confirmation',
                    'waiver', 'waiver_confirmation'));

CREATE OR REPLACE FUNCTION retention_evidence_drop(before date) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    cut constant timestamptz := retention_evidence_cut(before);
    due uuid[];
    gone uuid[];
    waived uuid[];
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
    SELECT coalesce(array_agg(waiver_id), '{}') INTO waived FROM retention_waiver WHERE order_id = ANY(due);
    DELETE FROM retention_chain_salt s USING retention_chain c
    WHERE c.seq = s.seq AND (c.ref = ANY(due) OR c.ref = ANY(gone) OR c.ref = ANY(waived));
    DELETE FROM retention_waiver_confirmation WHERE waiver_id = ANY(waived);
    DELETE FROM retention_waiver WHERE waiver_id = ANY(waived);
    DELETE FROM retention_reissue WHERE order_id = ANY(due);
    DELETE FROM retention_record_order WHERE order_id = ANY(due);
    DELETE FROM retention_names_gone WHERE order_id = ANY(due);
    DELETE FROM retention_person_order WHERE order_id = ANY(due);
    DELETE FROM retention_completion WHERE order_id = ANY(due);
    DELETE FROM retention_receipt WHERE order_id = ANY(due);
    DELETE FROM retention_sweep_order WHERE order_id = ANY(due);
    DELETE FROM retention_order WHERE order_id = ANY(due);
    DELETE FROM retention_sweep w WHERE w.swept_at < cut
      AND NOT EXISTS (SELECT FROM retention_sweep_order o WHERE o.sweep_id = w.sweep_id);
    RETURN cardinality(due) + cardinality(gone) + retention_protection_drop(cut);
END $$;

DO $$
BEGIN
    EXECUTE format(
        'REVOKE UPDATE, DELETE, TRUNCATE ON retention_reissue, retention_waiver,
         retention_waiver_confirmation FROM %I', current_database());
END
$$;

-- migrate: rollback
