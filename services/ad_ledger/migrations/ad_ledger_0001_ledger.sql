-- views, lots, postings, reservations, tariffs; first release
-- depends: chassis_0001_path

-- migrate: apply
SET lock_timeout = '5s';

-- Tariffs are data: a new one is a new version with a later valid_from (R-A3).
CREATE TABLE tariff (
    version text NOT NULL,
    valid_from timestamptz NOT NULL,
    daily_cap_ms bigint NOT NULL CONSTRAINT tariff_cap_ck CHECK (daily_cap_ms >= 0),
    tolerance_ms int NOT NULL CONSTRAINT tariff_tolerance_ck CHECK (tolerance_ms BETWEEN 0 AND 5000),
    CONSTRAINT tariff_pk PRIMARY KEY (version),
    CONSTRAINT tariff_valid_from_uq UNIQUE (valid_from)
);
CREATE TABLE tariff_rule (
    version text NOT NULL CONSTRAINT tariff_rule_tariff_fk REFERENCES tariff,
    kind text NOT NULL,
    credit_permille int NOT NULL CONSTRAINT tariff_rule_permille_ck CHECK (credit_permille BETWEEN 0 AND 10000),
    credit_flat_ms int NOT NULL CONSTRAINT tariff_rule_flat_ck CHECK (credit_flat_ms BETWEEN 0 AND 3600000),
    CONSTRAINT tariff_rule_pk PRIMARY KEY (version, kind)
);

-- What was consumed of an ad (R-A2). Natural key: ticket and kind (L3).
CREATE TABLE ad_view (
    view_day date NOT NULL,
    ticket_id uuid NOT NULL,
    kind text NOT NULL CONSTRAINT ad_view_kind_ck CHECK (kind IN ('page_hit', 'start',
        'first_quartile', 'midpoint', 'third_quartile', 'complete', 'click', 'conversion')),
    visitor_id uuid NOT NULL,
    viewed_at timestamptz NOT NULL,
    position_ms int NOT NULL CONSTRAINT ad_view_position_ck CHECK (position_ms >= 0),
    credit_ms int NOT NULL CONSTRAINT ad_view_credit_ck CHECK (credit_ms >= 0),
    tariff_version text NOT NULL,
    is_capped boolean NOT NULL,
    CONSTRAINT ad_view_pk PRIMARY KEY (view_day, ticket_id, kind)
) PARTITION BY RANGE (view_day);

-- The visitor's address, apart from the view: it has a rule of its own (R-D4).
CREATE TABLE ad_view_address (
    address_day date NOT NULL,
    ticket_id uuid NOT NULL,
    address inet NOT NULL,
    CONSTRAINT ad_view_address_pk PRIMARY KEY (address_day, ticket_id)
) PARTITION BY RANGE (address_day);

-- How far a visitor's time is used up by watching, and what the day has earned (the daily cap).
CREATE TABLE visitor_watch (
    watch_day date NOT NULL,
    visitor_id uuid NOT NULL,
    watched_until timestamptz NOT NULL,
    credited_ms bigint NOT NULL CONSTRAINT visitor_watch_credited_ck CHECK (credited_ms >= 0),
    CONSTRAINT visitor_watch_pk PRIMARY KEY (watch_day, visitor_id)
) PARTITION BY RANGE (watch_day);
CREATE INDEX visitor_watch_visitor ON visitor_watch (visitor_id);

-- Credit earned with one ticket. L2: nothing below zero. L4: granted is the sum of its parts.
CREATE TABLE lot (
    lot_day date NOT NULL,
    ticket_id uuid NOT NULL,
    visitor_id uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    granted_ms bigint NOT NULL,
    available_ms bigint NOT NULL,
    reserved_ms bigint NOT NULL,
    spent_ms bigint NOT NULL,
    expired_ms bigint NOT NULL,
    clawed_back_ms bigint NOT NULL,
    CONSTRAINT lot_pk PRIMARY KEY (lot_day, ticket_id),
    CONSTRAINT lot_not_negative_ck CHECK (least(available_ms, reserved_ms, spent_ms, expired_ms,
                                                clawed_back_ms) >= 0),
    CONSTRAINT lot_granted_is_sum_ck CHECK (granted_ms = available_ms + reserved_ms + spent_ms
                                            + expired_ms + clawed_back_ms)
) PARTITION BY RANGE (lot_day);
CREATE INDEX lot_visitor ON lot (visitor_id);
CREATE INDEX lot_expiring ON lot (expires_at) WHERE available_ms > 0;

-- Every movement of credit; append-only. Balanced by construction: one amount, two accounts (L1).
CREATE SEQUENCE posting_id_seq;
CREATE TABLE posting (
    lot_day date NOT NULL,
    posting_id bigint NOT NULL DEFAULT nextval('posting_id_seq'),
    ticket_id uuid NOT NULL,
    visitor_id uuid NOT NULL,
    operation text NOT NULL,
    debit_account text NOT NULL,
    credit_account text NOT NULL,
    amount_ms bigint NOT NULL CONSTRAINT posting_amount_ck CHECK (amount_ms > 0),
    posted_at timestamptz NOT NULL,
    reservation_id uuid,
    kind text,
    tariff_version text,
    CONSTRAINT posting_pk PRIMARY KEY (lot_day, posting_id),
    CONSTRAINT posting_accounts_ck CHECK ((operation, debit_account, credit_account) IN (
        ('grant', 'issued', 'available'), ('reserve', 'available', 'reserved'),
        ('release', 'reserved', 'available'), ('spend', 'reserved', 'spent'),
        ('expire', 'available', 'expired'), ('claw_back', 'available', 'clawed_back'))),
    CONSTRAINT posting_grant_traces_ck CHECK ((operation = 'grant')
        = (kind IS NOT NULL AND tariff_version IS NOT NULL)),
    CONSTRAINT posting_reservation_ck CHECK ((operation IN ('reserve', 'release', 'spend'))
        = (reservation_id IS NOT NULL)),
    -- L3: one grant per ticket and kind; nulls are distinct, so only grants are held to it
    CONSTRAINT posting_grant_once_uq UNIQUE (lot_day, ticket_id, kind),
    -- L5: a lot gives to, and gets back from, a reservation once each
    CONSTRAINT posting_reservation_once_uq UNIQUE (lot_day, ticket_id, reservation_id, operation)
) PARTITION BY RANGE (lot_day);

-- The platform's side of each day, without any person in it: outlives the visitors' rows, so that
-- the sum over all accounts stays zero when they are dropped (L1).
CREATE TABLE platform_account (
    account_day date NOT NULL,
    account text NOT NULL CONSTRAINT platform_account_name_ck
        CHECK (account IN ('issued', 'spent', 'expired', 'clawed_back')),
    balance_ms bigint NOT NULL,
    CONSTRAINT platform_account_pk PRIMARY KEY (account_day, account),
    CONSTRAINT platform_account_sign_ck CHECK ((account = 'issued') = (balance_ms < 0) OR balance_ms = 0)
);

CREATE TABLE reservation (
    reservation_day date NOT NULL,
    reservation_id uuid NOT NULL,
    visitor_id uuid NOT NULL,
    state text NOT NULL CONSTRAINT reservation_state_ck CHECK (state IN ('held', 'settled', 'void')),
    wanted_ms bigint NOT NULL,
    reserved_ms bigint NOT NULL CONSTRAINT reservation_reserved_ck CHECK (reserved_ms > 0),
    spent_ms bigint NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL,
    requested_at timestamptz NOT NULL,
    connected_at timestamptz,
    ended_at timestamptz,
    CONSTRAINT reservation_pk PRIMARY KEY (reservation_day, reservation_id),
    CONSTRAINT reservation_spent_ck CHECK (spent_ms BETWEEN 0 AND reserved_ms),
    CONSTRAINT reservation_ended_ck CHECK ((state = 'held') = (ended_at IS NULL)),
    CONSTRAINT reservation_void_ck CHECK (state = 'settled' OR spent_ms = 0)
) PARTITION BY RANGE (reservation_day);
CREATE INDEX reservation_lease ON reservation (lease_until) WHERE state = 'held';
CREATE INDEX reservation_visitor ON reservation (visitor_id);

CREATE TABLE reservation_share (
    reservation_day date NOT NULL,
    reservation_id uuid NOT NULL,
    lot_day date NOT NULL,
    ticket_id uuid NOT NULL,
    reserved_ms bigint NOT NULL CONSTRAINT reservation_share_reserved_ck CHECK (reserved_ms > 0),
    CONSTRAINT reservation_share_pk PRIMARY KEY (reservation_day, reservation_id, lot_day, ticket_id)
) PARTITION BY RANGE (reservation_day);

-- L5 in the database: what has ended stays as it ended.
CREATE FUNCTION reservation_ends_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a reservation ends exactly once'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'reservation_ends_once';
END $$;
CREATE TRIGGER reservation_ends_once BEFORE UPDATE ON reservation
    FOR EACH ROW WHEN (OLD.state <> 'held') EXECUTE FUNCTION reservation_ends_once();

DO $$ BEGIN
    EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON posting, ad_view, ad_view_address, reservation_share FROM %I',
                   current_database());
    -- tariffs come from the owner; what ages goes by the day, never by the row
    EXECUTE format('REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON tariff, tariff_rule FROM %I', current_database());
    EXECUTE format('REVOKE DELETE, TRUNCATE ON lot, reservation, platform_account FROM %I', current_database());
END $$;

-- The first tariff: a second of talk for a second of advertising, in quarters; clicks and
-- conversions earn nothing until a partner's contract allows it (field.md 2, policy trap).
INSERT INTO tariff (version, valid_from, daily_cap_ms, tolerance_ms)
VALUES ('2026-1', '2026-01-01T00:00:00Z', 3600000, 300);
INSERT INTO tariff_rule (version, kind, credit_permille, credit_flat_ms) VALUES
    ('2026-1', 'page_hit', 0, 0),
    ('2026-1', 'start', 0, 0),
    ('2026-1', 'first_quartile', 250, 0),
    ('2026-1', 'midpoint', 250, 0),
    ('2026-1', 'third_quartile', 250, 0),
    ('2026-1', 'complete', 250, 0),
    ('2026-1', 'click', 0, 0),
    ('2026-1', 'conversion', 0, 0);

-- migrate: rollback
