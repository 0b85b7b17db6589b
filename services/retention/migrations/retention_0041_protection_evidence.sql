-- holds and restrictions are evidence too: chained, reviewed by two persons, gone with the rule once they are over (R-D3, R-G4, R-D9, R-D10)
-- depends: retention_0040_evidence_time

-- migrate: apply
SET lock_timeout = '5s';

-- A restriction is looked at again too. Nullable for the version before; null counts as late.
ALTER TABLE retention_protection DROP CONSTRAINT retention_protection_review_ck;
UPDATE retention_protection p SET review_on = 90 + (
    SELECT (s.done_at AT TIME ZONE 'Europe/Berlin')::date FROM retention_protection_step s
    WHERE s.protection_id = p.protection_id AND s.step = 'placed')
WHERE NOT is_hold;
-- Later dates that one person has set until now; who did stays written, what is new goes another way.
UPDATE retention_protection p SET review_on = r.review_on
FROM (SELECT protection_id, max(review_on) AS review_on FROM retention_protection_review GROUP BY 1) r
WHERE r.protection_id = p.protection_id AND r.review_on > p.review_on;
ALTER TABLE retention_protection ADD CONSTRAINT retention_protection_reach_ck
    CHECK (before_day <= review_on + 1) NOT VALID;

-- A later review date that somebody proposes, with a reason of a closed list.
CREATE TABLE retention_review (
    review_id uuid NOT NULL CONSTRAINT retention_review_pk PRIMARY KEY,
    protection_id uuid NOT NULL CONSTRAINT retention_review_protection_fk REFERENCES retention_protection,
    review_on date NOT NULL,
    reason text NOT NULL,
    staff_id text NOT NULL,
    proposed_at timestamptz NOT NULL
);
CREATE INDEX retention_review_protection_ix ON retention_review (protection_id, proposed_at);

-- It counts once another person has confirmed it.
CREATE TABLE retention_review_confirmation (
    review_id uuid NOT NULL CONSTRAINT retention_review_confirmation_pk PRIMARY KEY
        CONSTRAINT retention_review_confirmation_review_fk REFERENCES retention_review,
    staff_id text NOT NULL,
    confirmed_at timestamptz NOT NULL
);

-- Whatever the program does: two persons, no date that moves back, none further than a year ahead.
CREATE FUNCTION retention_review_four_eyes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    found retention_review;
    current_on date;
BEGIN
    SELECT * INTO found FROM retention_review WHERE review_id = NEW.review_id;
    IF found.staff_id = NEW.staff_id THEN
        RAISE EXCEPTION 'the same person proposes and decides' USING ERRCODE = 'check_violation';
    END IF;
    SELECT greatest(p.review_on, (SELECT max(r.review_on) FROM retention_review r
                                  JOIN retention_review_confirmation USING (review_id)
                                  WHERE r.protection_id = p.protection_id))
    INTO current_on FROM retention_protection p WHERE p.protection_id = found.protection_id;
    IF found.review_on <= current_on OR found.review_on > (now() AT TIME ZONE 'Europe/Berlin')::date + 366 THEN
        RAISE EXCEPTION 'a review moves ahead, by a year at most: % is set', current_on
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER retention_review_four_eyes BEFORE INSERT ON retention_review_confirmation
    FOR EACH ROW EXECUTE FUNCTION retention_review_four_eyes();

ALTER TABLE retention_chain DROP CONSTRAINT retention_chain_what_ck;
ALTER TABLE retention_chain ADD CONSTRAINT retention_chain_what_ck
    CHECK (what IN ('year', 'order', 'person_order', 'receipt', 'refusal',
                    'protection', 'protection_step', 'review', 'review_confirmation'));

-- Evidence of a hold or restriction goes once it is over, its youngest part and all of its orders are due.
CREATE FUNCTION retention_protection_drop(cut timestamptz) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    over uuid[];
    reviews uuid[];
BEGIN
    SELECT coalesce(array_agg(p.protection_id), '{}') INTO over FROM retention_protection p
    WHERE EXISTS (SELECT FROM retention_protection_step s
                  WHERE s.protection_id = p.protection_id AND s.step IN ('released', 'withdrawn'))
      AND NOT EXISTS (SELECT FROM retention_protection_step s
                      WHERE s.protection_id = p.protection_id AND s.done_at >= cut)
      AND NOT EXISTS (SELECT FROM retention_protection_review r
                      WHERE r.protection_id = p.protection_id AND r.done_at >= cut)
      AND NOT EXISTS (SELECT FROM retention_review r LEFT JOIN retention_review_confirmation c USING (review_id)
                      WHERE r.protection_id = p.protection_id
                        AND (r.proposed_at >= cut OR c.confirmed_at >= cut))
      AND NOT EXISTS (SELECT FROM retention_person_order o WHERE o.protection_id = p.protection_id);
    SELECT coalesce(array_agg(review_id), '{}') INTO reviews FROM retention_review
    WHERE protection_id = ANY(over);
    DELETE FROM retention_chain_salt s USING retention_chain c
    WHERE c.seq = s.seq AND (c.ref = ANY(over) OR c.ref = ANY(reviews));
    DELETE FROM retention_review_confirmation WHERE review_id = ANY(reviews);
    DELETE FROM retention_review WHERE review_id = ANY(reviews);
    DELETE FROM retention_protection_review WHERE protection_id = ANY(over);
    DELETE FROM retention_protection_step WHERE protection_id = ANY(over);
    DELETE FROM retention_protection WHERE protection_id = ANY(over);
    RETURN cardinality(over);
END $$;

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
    RETURN cardinality(due) + cardinality(gone) + retention_protection_drop(cut);
END $$;

DO $$
BEGIN
    EXECUTE format(
        'REVOKE UPDATE, DELETE, TRUNCATE ON retention_review, retention_review_confirmation FROM %I',
        current_database());
    EXECUTE format('REVOKE INSERT ON retention_protection_review FROM %I', current_database());
    -- the cut is the caller's word: only the function above has checked it
    EXECUTE format('REVOKE EXECUTE ON FUNCTION retention_protection_drop(timestamptz) FROM PUBLIC, %I',
                   current_database());
END
$$;

-- migrate: rollback
