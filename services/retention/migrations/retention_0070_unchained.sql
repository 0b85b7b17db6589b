-- evidence from before it was chained is named once, under a link, so that what is put in later is found (R-D9)
-- depends: retention_0050_signed_acts

-- migrate: apply
SET lock_timeout = '5s';

-- Ids only. Nobody adds to it: the link commits to all of it.
CREATE TABLE retention_unchained (
    what text NOT NULL,
    ref uuid NOT NULL,
    service text,
    CONSTRAINT retention_unchained_uq UNIQUE NULLS NOT DISTINCT (what, ref, service)
);

ALTER TABLE retention_chain DROP CONSTRAINT retention_chain_what_ck;
ALTER TABLE retention_chain ADD CONSTRAINT retention_chain_what_ck
    CHECK (what IN ('year', 'unchained', 'order', 'person_order', 'receipt', 'refusal',
                    'protection', 'protection_step', 'review', 'review_confirmation',
                    'waiver', 'waiver_confirmation'));

DO $$
DECLARE
    head retention_chain;
    listed bytea;
    committed bytea;
    salt constant bytea := decode(repeat('00', 32), 'hex');
    next_seq bigint;
BEGIN
    -- as whoever appends to the chain (services/retention/store.py)
    PERFORM pg_advisory_xact_lock(7411101);
    INSERT INTO retention_unchained (what, ref, service)
    SELECT e.what, e.ref, e.service FROM (
        SELECT 'order' AS what, order_id AS ref, NULL AS service FROM retention_order
        UNION ALL SELECT 'person_order', order_id, NULL FROM retention_person_order
        UNION ALL SELECT 'receipt', order_id, service FROM retention_receipt
        UNION ALL SELECT 'refusal', refusal_id, NULL FROM retention_refusal
        UNION ALL SELECT 'protection', protection_id, NULL FROM retention_protection
        UNION ALL SELECT 'protection_step', protection_id, step FROM retention_protection_step
        UNION ALL SELECT 'review', review_id, NULL FROM retention_review
        UNION ALL SELECT 'review_confirmation', review_id, NULL FROM retention_review_confirmation
        UNION ALL SELECT 'waiver', waiver_id, NULL FROM retention_waiver
        UNION ALL SELECT 'waiver_confirmation', waiver_id, NULL FROM retention_waiver_confirmation
    ) e
    WHERE NOT EXISTS (SELECT FROM retention_chain c
                      WHERE c.what = e.what AND c.ref = e.ref AND c.service IS NOT DISTINCT FROM e.service);
    SELECT convert_to(string_agg(line, '' ORDER BY line COLLATE "C"), 'UTF8') INTO listed FROM (
        SELECT what || ' ' || ref || ' ' || coalesce(service, '-') || E'\n' AS line FROM retention_unchained
    ) lines;
    IF listed IS NOT NULL THEN
        -- as services/privacy/chain.py does it
        SELECT * INTO head FROM retention_chain ORDER BY seq DESC LIMIT 1;
        next_seq := coalesce(head.seq, 0) + 1;
        committed := sha256(convert_to('commitment', 'UTF8') || '\x00'::bytea || salt || listed);
        INSERT INTO retention_chain (seq, what, ref, service, commitment, hash)
        VALUES (next_seq, 'unchained', '00000000-0000-0000-0000-000000000000', NULL, committed,
                sha256(convert_to('link', 'UTF8') || '\x00'::bytea || coalesce(head.hash, salt)
                       || int8send(next_seq) || committed));
    END IF;
    EXECUTE format(
        'REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON retention_unchained FROM %I', current_database());
END $$;

-- migrate: rollback
