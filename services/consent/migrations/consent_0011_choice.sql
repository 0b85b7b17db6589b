-- a choice may name a recipient, and the page it was made on; a denial need not say what was shown
-- depends: consent_0003_chain consent_0010_transfer

-- migrate: apply
SET lock_timeout = '5s';

-- '' = all that were named: part of the natural key, so never null
ALTER TABLE consent_record
    ADD COLUMN recipient text NOT NULL DEFAULT '',
    ADD COLUMN page text,
    ALTER COLUMN catalogue_version DROP NOT NULL,
    ALTER COLUMN wording_version DROP NOT NULL,
    ALTER COLUMN language DROP NOT NULL;
ALTER TABLE consent_record DROP CONSTRAINT consent_record_pk;
ALTER TABLE consent_record
    ADD CONSTRAINT consent_record_pk PRIMARY KEY (ends_on, decision_id, purpose, recipient);

ALTER TABLE consent_record DROP CONSTRAINT consent_record_necessary_ck;
ALTER TABLE consent_record DROP CONSTRAINT consent_record_decision_ck;
ALTER TABLE consent_record
    ADD CONSTRAINT consent_record_decision_ck CHECK (
        decision IN ('given', 'refused', 'withdrawn', 'objected', 'dismissed', 'served')),
    ADD CONSTRAINT consent_record_necessary_ck CHECK (
        purpose <> 'necessary' OR decision IN ('given', 'dismissed', 'served')),
    -- K3: no consent without the version that was shown, but one from before there were versions
    ADD CONSTRAINT consent_record_shown_ck CHECK (
        decision IN ('refused', 'withdrawn', 'objected') OR catalogue_version IS NOT NULL
        OR decided_at < '2018-05-25 00:00:00+02'),
    ADD CONSTRAINT consent_record_signal_ck CHECK (method <> 'signal' OR decision = 'objected'
        OR decision = 'refused' OR decision = 'withdrawn');

-- migrate: rollback
