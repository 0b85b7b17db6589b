-- the chain that proves the records, its heads, and the signed anchors (K1, ADR 0022)
-- depends: consent_0002_protection

-- migrate: apply
SET lock_timeout = '5s';

-- Commitments only: without the salt, which goes with the record, they say nothing of anyone. So
-- the chain needs no period and stays whole when a year of records is dropped. No instants here.
CREATE TABLE consent_chain (
    part smallint NOT NULL,
    seq bigint NOT NULL,
    commitment bytea NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT consent_chain_pk PRIMARY KEY (part, seq),
    CONSTRAINT consent_chain_seq_ck CHECK (seq >= 1),
    CONSTRAINT consent_chain_hash_ck CHECK (length(commitment) = 32 AND length(hash) = 32)
);

-- One row a part: whoever appends locks it; nothing but the last link, the chain is the truth.
CREATE TABLE consent_chain_head (
    part smallint NOT NULL,
    seq bigint NOT NULL,
    commitment bytea NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT consent_chain_head_pk PRIMARY KEY (part)
);
INSERT INTO consent_chain_head (part, seq, commitment, hash)
SELECT part, 0, decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex')
FROM generate_series(0, 7) part;

CREATE TABLE consent_anchor (
    part smallint NOT NULL,
    anchored_on date NOT NULL,
    seq bigint NOT NULL,
    hash bytea NOT NULL,
    key_id text NOT NULL,
    signature bytea NOT NULL,
    CONSTRAINT consent_anchor_pk PRIMARY KEY (part, anchored_on)
);

-- The salt stands in the record: what is left of a record that went can be guessed by nobody.
ALTER TABLE consent_record
    ADD COLUMN chain_part smallint,
    ADD COLUMN chain_seq bigint,
    ADD COLUMN salt bytea;
-- records from before the chain stay as they are; each new one is in it
ALTER TABLE consent_record ADD CONSTRAINT consent_record_chained_ck CHECK (
    chain_part IS NOT NULL AND chain_seq IS NOT NULL AND salt IS NOT NULL AND length(salt) = 32
) NOT VALID;

DO $$
BEGIN
    EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON consent_chain, consent_anchor FROM %I', current_database());
    EXECUTE format('REVOKE INSERT, DELETE, TRUNCATE ON consent_chain_head FROM %I', current_database());
END
$$;

-- migrate: rollback
