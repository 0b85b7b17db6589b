-- what orders took from the chains: which numbers lost their record, by which order (K1, D4, ADR 0033)
-- depends: consent_0011_choice

-- migrate: apply
SET lock_timeout = '5s';

-- The chain of takings: nobody who records a decision waits for its head.
INSERT INTO consent_chain_head (part, seq, commitment, hash)
VALUES (8, 0, decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex'));

-- For ever, as the chain is: without it nobody could tell what ended in time from what was removed.
CREATE TABLE consent_taking (
    seq bigint NOT NULL,
    -- of the chain whose records went
    part smallint NOT NULL,
    order_id uuid NOT NULL,
    -- runs of numbers
    first_seqs bigint[] NOT NULL,
    last_seqs bigint[] NOT NULL,
    key_id text NOT NULL,
    signature bytea NOT NULL,
    CONSTRAINT consent_taking_pk PRIMARY KEY (seq),
    CONSTRAINT consent_taking_ranges_ck CHECK (cardinality(first_seqs) = cardinality(last_seqs))
);

DO $$
BEGIN
    EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON consent_taking FROM %I', current_database());
END
$$;

-- migrate: rollback
