-- the access log tells of staff's acts too: what was done, and by what means it was asked for (R-C5)
-- depends: privacy_0004_access_log_table

-- migrate: apply
SET lock_timeout = '5s';

ALTER TABLE access_log
    ADD COLUMN act text NOT NULL DEFAULT 'read'
        CONSTRAINT access_log_act_ck CHECK (act IN ('read', 'import', 'withdraw')),
    -- closed words, by commas: email, letter, telephone, ...
    ADD COLUMN means text CONSTRAINT access_log_means_ck CHECK (means ~ '^[a-z]+(,[a-z]+)*$');
ALTER TABLE access_log DROP CONSTRAINT access_log_reason_ck;
ALTER TABLE access_log ADD CONSTRAINT access_log_reason_ck CHECK (
    reason IN ('person_request', 'authority_request', 'legal_claim', 'security_incident', 'fault')
    -- nobody reads for that reason
    OR (reason = 'accountability' AND act <> 'read'));

-- migrate: rollback
