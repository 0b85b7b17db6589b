-- what was sent outside or refused, on which ground; disclosures to authorities, by two persons
-- depends: consent_0002_protection

-- migrate: apply
SET lock_timeout = '5s';

-- Append-only. No visitor and no instant of an ad or call stands here: after 7 x 24 h it says what
-- went to whom and why, of nobody in particular (ADR 0023).
CREATE TABLE consent_transfer (
    transferred_on date NOT NULL,
    transfer_id uuid NOT NULL,
    sender text NOT NULL,
    recipient text NOT NULL,
    purpose text NOT NULL,
    fields text[] NOT NULL,
    verdict text NOT NULL CONSTRAINT consent_transfer_verdict_ck CHECK (verdict IN ('permitted', 'refused')),
    reason text,
    basis text,
    country_ground text,
    consent text,
    country text,
    register_version text NOT NULL,
    asked_at timestamptz NOT NULL,
    CONSTRAINT consent_transfer_pk PRIMARY KEY (transferred_on, transfer_id),
    -- K3: no transfer without its grounds, no refusal without its reason
    CONSTRAINT consent_transfer_grounds_ck CHECK (
        CASE verdict WHEN 'permitted' THEN basis IS NOT NULL AND country_ground IS NOT NULL AND reason IS NULL
                     ELSE basis IS NULL AND country_ground IS NULL AND reason IS NOT NULL END),
    CONSTRAINT consent_transfer_consent_ck
        CHECK ((basis IS NOT DISTINCT FROM 'Art. 6(1)(a)') = (consent IS NOT NULL))
) PARTITION BY RANGE (transferred_on);

-- Whose data they were, and when what they are about happened: goes after 7 x 24 h (R-D5).
CREATE TABLE consent_transfer_visitor (
    transfer_day date NOT NULL,
    transfer_id uuid NOT NULL,
    visitor_id uuid NOT NULL,
    transferred_on date NOT NULL,
    happened_at timestamptz NOT NULL,
    CONSTRAINT consent_transfer_visitor_pk PRIMARY KEY (transfer_day, transfer_id)
) PARTITION BY RANGE (transfer_day);
CREATE INDEX consent_transfer_visitor_ix ON consent_transfer_visitor (visitor_id);

-- Two rows a disclosure: proposed by one person, approved by another (R-C4).
CREATE TABLE consent_disclosure (
    proposed_on date NOT NULL,
    disclosure_id uuid NOT NULL,
    step text NOT NULL CONSTRAINT consent_disclosure_step_ck CHECK (step IN ('proposed', 'approved')),
    staff_id text NOT NULL CONSTRAINT consent_disclosure_staff_id_ck CHECK (staff_id ~ '^staff-[0-9]{1,6}$'),
    authority text,
    legal_ground text,
    fields text[],
    -- SHA-256 with a salt of the authority's file reference: shown again, it can be found
    reference_salt bytea CONSTRAINT consent_disclosure_salt_ck CHECK (length(reference_salt) = 16),
    reference_hash bytea CONSTRAINT consent_disclosure_hash_ck CHECK (length(reference_hash) = 32),
    stated_at timestamptz NOT NULL,
    CONSTRAINT consent_disclosure_pk PRIMARY KEY (proposed_on, disclosure_id, step),
    CONSTRAINT consent_disclosure_whole_ck CHECK (
        num_nulls(authority, legal_ground, fields, reference_salt, reference_hash)
        = CASE step WHEN 'proposed' THEN 0 ELSE 5 END)
) PARTITION BY RANGE (proposed_on);

-- Four eyes, whatever the service's code does.
CREATE FUNCTION consent_disclosure_four_eyes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    proposer text;
BEGIN
    SELECT staff_id INTO proposer FROM consent_disclosure
    WHERE proposed_on = NEW.proposed_on AND disclosure_id = NEW.disclosure_id AND step = 'proposed';
    IF proposer IS NULL OR proposer = NEW.staff_id THEN
        RAISE EXCEPTION 'a disclosure is approved by a second person'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'consent_disclosure_four_eyes';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER consent_disclosure_four_eyes BEFORE INSERT ON consent_disclosure
    FOR EACH ROW WHEN (NEW.step = 'approved') EXECUTE FUNCTION consent_disclosure_four_eyes();

DO $$ BEGIN
    EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON consent_transfer, consent_transfer_visitor, consent_disclosure FROM %I',
                   current_database());
END $$;

-- Last year's partition (a transfer of the last hours of a year), this year's and the next one's.
CREATE FUNCTION consent_transfer_maintain()
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    year int;
    parent text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['consent_transfer', 'consent_disclosure'] LOOP
        FOR year IN SELECT extract(year FROM now())::int + n FROM generate_series(-1, 1) n LOOP
            PERFORM chassis_range_add(parent, parent || '_y' || year, make_date(year, 1, 1)::text,
                                      make_date(year + 1, 1, 1)::text);
        END LOOP;
    END LOOP;
END $$;
SELECT consent_transfer_maintain();

-- Drops every year of one of both that lies wholly before a day.
CREATE FUNCTION consent_transfer_drop(parent text, before date)
RETURNS TABLE (partition text, n_rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    child text;
BEGIN
    ASSERT parent IN ('consent_transfer', 'consent_disclosure');
    FOR child IN
        SELECT c.relname FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = format('%I', parent)::regclass
          AND make_date(right(c.relname, 4)::int + 1, 1, 1) <= before
        ORDER BY c.relname
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', child);
        EXECUTE format('SELECT count(*) FROM %I', child) INTO n_rows;
        EXECUTE format('DROP TABLE %I', child);
        partition := child;
        RETURN NEXT;
    END LOOP;
    PERFORM consent_transfer_maintain();
END $$;

INSERT INTO privacy_table (name, kind, day_column, subject_column, via, own_columns, via_columns, returning_rows, partition_of, drop_function) VALUES
    ('consent_transfer', 'transfer_record', 'transferred_on', NULL, NULL, NULL, NULL, 'together', 'year', 'consent_transfer_drop'),
    ('consent_transfer_visitor', 'ad_use', 'transfer_day', 'visitor_id', NULL, NULL, NULL, 'each', 'day', 'privacy_day_drop'),
    ('consent_disclosure', 'transfer_record', 'proposed_on', NULL, NULL, NULL, NULL, 'together', 'year', 'consent_transfer_drop');

DO $$ BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION consent_transfer_drop(text, date) FROM PUBLIC, %I', current_database());
END $$;

-- migrate: rollback
