-- what the ad partner is told of each view, once (R-A4, R-E1)
-- depends: ad_ledger_0002_protection

-- migrate: apply
SET lock_timeout = '5s';

-- One row for each step of a view that the partner is to know. It points to the view and copies
-- nothing of it: an erasure, a restriction or the end of the day takes it along.
CREATE TABLE partner_report (
    report_day date NOT NULL,
    ticket_id uuid NOT NULL,
    kind text NOT NULL,
    ad_id text NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CONSTRAINT partner_report_state_ck
        CHECK (state IN ('waiting', 'sending', 'reported', 'refused')),
    batch_id uuid,
    CONSTRAINT partner_report_pk PRIMARY KEY (report_day, ticket_id, kind),
    CONSTRAINT partner_report_batch_ck CHECK ((state = 'waiting') = (batch_id IS NULL))
) PARTITION BY RANGE (report_day);
CREATE INDEX partner_report_waiting_ix ON partner_report (report_day, ticket_id) WHERE state = 'waiting';
CREATE INDEX partner_report_batch_ix ON partner_report (batch_id) WHERE state = 'sending';

-- What is sent together, under one key: the same rows at each try, so that the partner knows it again.
CREATE TABLE partner_batch (
    batch_day date NOT NULL,
    batch_id uuid NOT NULL,
    is_open boolean NOT NULL,
    n_tries int NOT NULL,
    next_try_at timestamptz NOT NULL,
    ended_at timestamptz,
    CONSTRAINT partner_batch_pk PRIMARY KEY (batch_day, batch_id),
    CONSTRAINT partner_batch_ended_ck CHECK (is_open = (ended_at IS NULL))
) PARTITION BY RANGE (batch_day);
CREATE INDEX partner_batch_open_ix ON partner_batch (next_try_at) WHERE is_open;

INSERT INTO privacy_table (name, kind, day_column, subject_column, via, own_columns, via_columns, returning_rows, partition_of, drop_function) VALUES
    ('partner_report', 'ad_use', 'report_day', NULL, 'ad_view', '{report_day,ticket_id}', '{view_day,ticket_id}', 'together', 'day', 'privacy_day_drop'),
    ('partner_batch', 'ad_use', 'batch_day', NULL, NULL, NULL, NULL, 'together', 'day', 'privacy_day_drop');

DO $$ BEGIN
    EXECUTE format('REVOKE DELETE, TRUNCATE ON partner_report, partner_batch FROM %I', current_database());
END $$;

-- migrate: rollback
