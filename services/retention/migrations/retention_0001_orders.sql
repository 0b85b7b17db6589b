-- sweeps, their orders and the receipts: counts and opaque ids only (D4), kept for proof (R-D10)
-- depends:

-- migrate: apply
SET lock_timeout = '5s';

CREATE TABLE retention_sweep (
    sweep_id uuid NOT NULL CONSTRAINT retention_sweep_pk PRIMARY KEY,
    as_of timestamptz NOT NULL,
    swept_at timestamptz NOT NULL,
    schedule_version text NOT NULL
);

CREATE TABLE retention_order (
    order_id uuid NOT NULL CONSTRAINT retention_order_pk PRIMARY KEY,
    kind text NOT NULL,
    requirement text NOT NULL,
    before_day date NOT NULL,
    attempt int NOT NULL CONSTRAINT retention_order_attempt_ck CHECK (attempt >= 0),
    as_of timestamptz NOT NULL,
    issued_at timestamptz NOT NULL,
    overdue_at timestamptz NOT NULL,
    expected text[] NOT NULL CONSTRAINT retention_order_expected_ck CHECK (cardinality(expected) > 0),
    CONSTRAINT retention_order_cut_uq UNIQUE (kind, before_day, attempt)
);

-- Which orders a sweep made, or found made already.
CREATE TABLE retention_sweep_order (
    sweep_id uuid NOT NULL CONSTRAINT retention_sweep_order_sweep_fk REFERENCES retention_sweep,
    order_id uuid NOT NULL CONSTRAINT retention_sweep_order_order_fk REFERENCES retention_order,
    is_new boolean NOT NULL,
    CONSTRAINT retention_sweep_order_pk PRIMARY KEY (sweep_id, order_id)
);

CREATE TABLE retention_receipt (
    order_id uuid NOT NULL CONSTRAINT retention_receipt_order_fk REFERENCES retention_order,
    service text NOT NULL,
    kind text NOT NULL,
    counts jsonb NOT NULL,
    done_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    CONSTRAINT retention_receipt_pk PRIMARY KEY (order_id, service)
);

-- Written once, with the last receipt.
CREATE TABLE retention_completion (
    order_id uuid NOT NULL CONSTRAINT retention_completion_pk PRIMARY KEY
        CONSTRAINT retention_completion_order_fk REFERENCES retention_order,
    completed_at timestamptz NOT NULL
);

-- The last measurement of each partition; `oldest_at` is null where it is empty.
CREATE TABLE retention_topic_age (
    topic text NOT NULL,
    part int NOT NULL,
    oldest_at timestamptz,
    age_max interval NOT NULL,
    measured_at timestamptz NOT NULL,
    CONSTRAINT retention_topic_age_pk PRIMARY KEY (topic, part)
);

-- Evidence is appended, never changed.
DO $$
BEGIN
    EXECUTE format(
        'REVOKE UPDATE, DELETE, TRUNCATE ON retention_sweep, retention_order, retention_sweep_order,
         retention_receipt, retention_completion FROM %I', current_database());
END
$$;

-- migrate: rollback
