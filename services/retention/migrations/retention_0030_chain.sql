-- evidence in a hash chain over salted commitments, with signed anchors; what is due goes, the chain stays (R-D9, R-D10)
-- depends: retention_0020_person_orders retention_0010_records

-- migrate: apply
SET lock_timeout = '5s';

CREATE TABLE retention_chain (
    seq bigint NOT NULL CONSTRAINT retention_chain_pk PRIMARY KEY,
    what text NOT NULL CONSTRAINT retention_chain_what_ck
        CHECK (what IN ('order', 'person_order', 'receipt', 'refusal')),
    ref uuid NOT NULL,
    service text,
    commitment bytea NOT NULL CONSTRAINT retention_chain_commitment_ck CHECK (length(commitment) = 32),
    hash bytea NOT NULL CONSTRAINT retention_chain_hash_ck CHECK (length(hash) = 32),
    CONSTRAINT retention_chain_what_uq UNIQUE NULLS NOT DISTINCT (what, ref, service)
);

-- Without its salt a commitment says nothing about what it was made of.
CREATE TABLE retention_chain_salt (
    seq bigint NOT NULL CONSTRAINT retention_chain_salt_pk PRIMARY KEY
        CONSTRAINT retention_chain_salt_fk REFERENCES retention_chain,
    salt bytea NOT NULL CONSTRAINT retention_chain_salt_ck CHECK (length(salt) = 32)
);

CREATE TABLE retention_refusal (
    refusal_id uuid NOT NULL CONSTRAINT retention_refusal_pk PRIMARY KEY,
    what text NOT NULL,
    reason text NOT NULL,
    staff_id text NOT NULL,
    refused_at timestamptz NOT NULL
);

CREATE TABLE retention_anchor (
    anchor_day date NOT NULL CONSTRAINT retention_anchor_pk PRIMARY KEY,
    seq bigint NOT NULL,
    hash bytea NOT NULL,
    key_id text NOT NULL,
    signature bytea NOT NULL
);

-- Evidence of orders issued before a day goes, with its salts; links and anchors stay. Orders that
-- are not complete, and what a protection in force rests on, stay too.
CREATE FUNCTION retention_evidence_drop(before date) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    due uuid[];
    gone uuid[];
BEGIN
    SELECT coalesce(array_agg(o.order_id), '{}') INTO due FROM retention_order o
    JOIN retention_completion c USING (order_id)
    WHERE o.issued_at < before
      AND NOT EXISTS (
        SELECT FROM retention_person_order p JOIN retention_protection_step s USING (protection_id)
        WHERE p.order_id = o.order_id AND s.step = 'placed' AND NOT EXISTS (
            SELECT FROM retention_protection_step r
            WHERE r.protection_id = p.protection_id AND r.step = 'released'));
    WITH refused AS (DELETE FROM retention_refusal WHERE refused_at < before RETURNING refusal_id)
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
    DELETE FROM retention_sweep w WHERE w.swept_at < before
      AND NOT EXISTS (SELECT FROM retention_sweep_order o WHERE o.sweep_id = w.sweep_id);
    RETURN cardinality(due) + cardinality(gone);
END $$;

DO $$
BEGIN
    EXECUTE format(
        'REVOKE UPDATE, DELETE, TRUNCATE ON retention_chain, retention_chain_salt, retention_refusal,
         retention_anchor FROM %I', current_database());
END
$$;

-- migrate: rollback
