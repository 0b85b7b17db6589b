-- orders about persons (erase, restrict) and legal holds: who asked, for which case, and whose eyes saw it (R-D3, R-G3, R-G4)
-- depends: retention_0001_orders

-- migrate: apply
SET lock_timeout = '5s';

ALTER TABLE retention_order ADD COLUMN action text NOT NULL DEFAULT 'drop';
ALTER TABLE retention_order DROP CONSTRAINT retention_order_cut_uq;
CREATE UNIQUE INDEX retention_order_cut_uq ON retention_order (kind, before_day, attempt) WHERE action = 'drop';

-- What an order about persons is besides: it names a case file and staff, never the persons.
CREATE TABLE retention_person_order (
    order_id uuid NOT NULL CONSTRAINT retention_person_order_pk PRIMARY KEY
        CONSTRAINT retention_person_order_order_fk REFERENCES retention_order,
    kinds text[] NOT NULL CONSTRAINT retention_person_order_kinds_ck CHECK (cardinality(kinds) > 0),
    from_day date,
    protection_id uuid,
    case_number text NOT NULL,
    staff_id text NOT NULL,
    n_visitors int NOT NULL CONSTRAINT retention_person_order_n_ck CHECK (n_visitors >= 0)
);

-- When the order's names were taken from its topic.
CREATE TABLE retention_names_gone (
    order_id uuid NOT NULL CONSTRAINT retention_names_gone_pk PRIMARY KEY
        CONSTRAINT retention_names_gone_order_fk REFERENCES retention_person_order,
    gone_at timestamptz NOT NULL
);

-- A legal hold or a restriction. Whom it names stands in a list of its own (privacy_visitor), which goes with it.
CREATE TABLE retention_protection (
    protection_id uuid NOT NULL CONSTRAINT retention_protection_pk PRIMARY KEY,
    is_hold boolean NOT NULL,
    case_number text NOT NULL,
    ground text,
    kinds text[] NOT NULL CONSTRAINT retention_protection_kinds_ck CHECK (cardinality(kinds) > 0),
    from_day date,
    before_day date NOT NULL,
    names_visitors boolean NOT NULL,
    review_on date,
    CONSTRAINT retention_protection_ground_ck CHECK (is_hold = (ground IS NOT NULL)),
    CONSTRAINT retention_protection_review_ck CHECK (is_hold = (review_on IS NOT NULL)),
    CONSTRAINT retention_protection_days_ck CHECK (from_day IS NULL OR from_day < before_day)
);

CREATE TABLE retention_protection_step (
    protection_id uuid NOT NULL CONSTRAINT retention_protection_step_fk REFERENCES retention_protection,
    step text NOT NULL CONSTRAINT retention_protection_step_ck
        CHECK (step IN ('proposed', 'placed', 'release_proposed', 'released', 'withdrawn')),
    staff_id text NOT NULL,
    done_at timestamptz NOT NULL,
    CONSTRAINT retention_protection_step_pk PRIMARY KEY (protection_id, step)
);

-- A later review date, with who set it.
CREATE TABLE retention_protection_review (
    protection_id uuid NOT NULL CONSTRAINT retention_protection_review_fk REFERENCES retention_protection,
    staff_id text NOT NULL,
    review_on date NOT NULL,
    done_at timestamptz NOT NULL,
    CONSTRAINT retention_protection_review_pk PRIMARY KEY (protection_id, done_at)
);

-- Two pairs of eyes, whatever the program does: the second step of a pair needs another person.
CREATE FUNCTION retention_four_eyes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM retention_protection_step s JOIN retention_protection p USING (protection_id)
               WHERE s.protection_id = NEW.protection_id AND s.staff_id = NEW.staff_id AND p.is_hold
                 AND (s.step, NEW.step) IN (('proposed', 'placed'), ('release_proposed', 'released'))) THEN
        RAISE EXCEPTION 'the same person proposes and decides' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER retention_four_eyes BEFORE INSERT ON retention_protection_step
    FOR EACH ROW EXECUTE FUNCTION retention_four_eyes();

DO $$
BEGIN
    EXECUTE format(
        'REVOKE UPDATE, DELETE, TRUNCATE ON retention_person_order, retention_names_gone, retention_protection,
         retention_protection_step, retention_protection_review FROM %I', current_database());
END
$$;

-- migrate: rollback
