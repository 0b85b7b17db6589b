-- what this service did about each retention order: counts only (D4), kept so that a repeated order gets the same receipt
-- depends:

-- migrate: apply
SET lock_timeout = '5s';

CREATE TABLE retention_done (
    order_id uuid NOT NULL CONSTRAINT retention_done_pk PRIMARY KEY,
    kind text NOT NULL,
    before_day date NOT NULL,
    counts jsonb NOT NULL,
    done_at timestamptz NOT NULL
);

DO $$
BEGIN
    EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON retention_done FROM %I', current_database());
END
$$;

-- migrate: rollback
