-- what staff does is signed by whoever does it; what the schedule does is its own, and never a second person (R-D3, R-C5, R-D9)
-- depends: retention_0042_open_orders retention_0045_anonymise

-- migrate: apply
SET lock_timeout = '5s';

-- Ed25519 over the row without these two (services/privacy/staff.py). Rows of before have none.
ALTER TABLE retention_person_order ADD COLUMN key_id text, ADD COLUMN signature bytea;
ALTER TABLE retention_protection_step ADD COLUMN key_id text, ADD COLUMN signature bytea;
ALTER TABLE retention_review ADD COLUMN key_id text, ADD COLUMN signature bytea;
ALTER TABLE retention_review_confirmation ADD COLUMN key_id text, ADD COLUMN signature bytea;
ALTER TABLE retention_waiver ADD COLUMN key_id text, ADD COLUMN signature bytea;
ALTER TABLE retention_waiver_confirmation ADD COLUMN key_id text, ADD COLUMN signature bytea;

-- The schedule gives up what nobody has placed, and ends what an assessment has ended: it names nobody and decides nothing with another.
ALTER TABLE retention_person_order ADD CONSTRAINT retention_person_order_signed_ck CHECK (
    CASE WHEN staff_id = 'schedule'
         THEN num_nulls(key_id, signature) = 2 AND n_visitors = 0 AND protection_id IS NOT NULL
         ELSE num_nulls(key_id, signature) = 0 AND length(signature) = 64 END) NOT VALID;
ALTER TABLE retention_protection_step ADD CONSTRAINT retention_protection_step_signed_ck CHECK (
    CASE WHEN staff_id = 'schedule'
         THEN num_nulls(key_id, signature) = 2 AND step IN ('withdrawn', 'released')
         ELSE num_nulls(key_id, signature) = 0 AND length(signature) = 64 END) NOT VALID;
ALTER TABLE retention_review ADD CONSTRAINT retention_review_signed_ck
    CHECK (num_nulls(key_id, signature) = 0 AND length(signature) = 64 AND staff_id <> 'schedule') NOT VALID;
ALTER TABLE retention_review_confirmation ADD CONSTRAINT retention_review_confirmation_signed_ck
    CHECK (num_nulls(key_id, signature) = 0 AND length(signature) = 64 AND staff_id <> 'schedule') NOT VALID;
ALTER TABLE retention_waiver ADD CONSTRAINT retention_waiver_signed_ck
    CHECK (num_nulls(key_id, signature) = 0 AND length(signature) = 64 AND staff_id <> 'schedule') NOT VALID;
ALTER TABLE retention_waiver_confirmation ADD CONSTRAINT retention_waiver_confirmation_signed_ck
    CHECK (num_nulls(key_id, signature) = 0 AND length(signature) = 64 AND staff_id <> 'schedule') NOT VALID;

-- The schedule lifts no hold but that of a special threat: any other is lifted by two persons.
CREATE FUNCTION retention_schedule_alone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.step = 'released' AND NOT EXISTS (
        SELECT FROM retention_protection p
        WHERE p.protection_id = NEW.protection_id AND p.is_hold AND p.ground = 'special_threat') THEN
        RAISE EXCEPTION 'the schedule lifts holds of special threats only' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER retention_schedule_alone BEFORE INSERT ON retention_protection_step
    FOR EACH ROW WHEN (NEW.staff_id = 'schedule') EXECUTE FUNCTION retention_schedule_alone();

-- migrate: rollback
