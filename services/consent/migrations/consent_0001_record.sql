-- the proof of each decision, and the link from a visitor to it, which goes after 7 x 24 h
-- depends:

-- migrate: apply
SET lock_timeout = '5s';

-- One row per visitor, in the day of the first decision known: when that day's partition goes, no
-- proof can be linked to a visitor any more, and through the visitor to no ad and no call.
CREATE TABLE consent_subject (
    subject_day date NOT NULL,
    visitor_id uuid NOT NULL,
    proof_id uuid NOT NULL,
    CONSTRAINT consent_subject_pk PRIMARY KEY (subject_day, visitor_id)
) PARTITION BY RANGE (subject_day);
CREATE INDEX consent_subject_visitor_ix ON consent_subject (visitor_id);

-- Append-only. Partitioned by the Berlin date by which the consent ends at the latest (a visit
-- cookie's life after the decision), one partition a year: R-D10 counts in years from that end.
CREATE TABLE consent_record (
    ends_on date NOT NULL,
    decision_id uuid NOT NULL,
    purpose text NOT NULL,
    proof_id uuid NOT NULL,
    decision text NOT NULL,
    catalogue_version text NOT NULL,
    wording_version text NOT NULL,
    language text NOT NULL,
    method text NOT NULL,
    decided_at timestamptz NOT NULL,
    CONSTRAINT consent_record_pk PRIMARY KEY (ends_on, decision_id, purpose),
    CONSTRAINT consent_record_necessary_ck CHECK (purpose <> 'necessary' OR decision = 'given'),
    CONSTRAINT consent_record_decision_ck
        CHECK (decision IN ('given', 'refused', 'withdrawn', 'objected'))
) PARTITION BY RANGE (ends_on);
CREATE INDEX consent_record_decision_ix ON consent_record (decision_id);
CREATE INDEX consent_record_proof_ix ON consent_record (proof_id, purpose, decided_at);

DO $$
BEGIN
    EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON consent_record FROM %I', current_database());
END
$$;

-- This year's partition and the next one's. Default privileges would let the service's role change
-- a partition by its own name, past the parent's REVOKE: taken away here.
CREATE FUNCTION consent_year_maintain()
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    year int;
    child text;
BEGIN
    FOR year IN SELECT extract(year FROM now())::int + n FROM generate_series(0, 1) n LOOP
        child := 'consent_record_y' || year;
        IF chassis_range_add('consent_record', child, make_date(year, 1, 1)::text,
                             make_date(year + 1, 1, 1)::text) THEN
            EXECUTE format('REVOKE ALL ON %I FROM %I', child, current_database());
        END IF;
    END LOOP;
END
$$;
SELECT consent_year_maintain();

-- Drops every year that lies wholly before a day, and makes anew what is being written to (which a
-- simulation may have dropped).
CREATE FUNCTION consent_record_drop(parent text, before date)
RETURNS TABLE (partition text, n_rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    child text;
BEGIN
    ASSERT parent = 'consent_record';
    FOR child IN
        SELECT c.relname FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'consent_record'::regclass
          AND make_date(right(c.relname, 4)::int + 1, 1, 1) <= before
        ORDER BY c.relname
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', child);
        EXECUTE format('SELECT count(*) FROM %I', child) INTO n_rows;
        EXECUTE format('DROP TABLE %I', child);
        partition := child;
        RETURN NEXT;
    END LOOP;
    PERFORM consent_year_maintain();
END
$$;

-- migrate: rollback
