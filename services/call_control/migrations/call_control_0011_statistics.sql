-- anonymous statistics of a day by network, made before its addresses go (R-C2)
-- depends: call_control_0002_protection call_control_0010_find

-- migrate: apply
SET lock_timeout = '5s';

-- Networks of many visitors only; the few of the others stand together, where they are many enough.
CREATE TABLE call_statistics (
    call_day date NOT NULL,
    -- null = all other networks
    network cidr,
    n_visitors bigint NOT NULL,
    n_calls bigint NOT NULL,
    n_connected bigint NOT NULL,
    CONSTRAINT call_statistics_network_ck CHECK (
        masklen(network) <= CASE family(network) WHEN 4 THEN 24 ELSE 48 END),
    CONSTRAINT call_statistics_few_ck CHECK (n_visitors >= 10)
);
CREATE UNIQUE INDEX call_statistics_ux ON call_statistics (call_day, network) NULLS NOT DISTINCT;

-- Days that were counted, also where nothing was left to tell: none is counted twice.
CREATE TABLE call_statistics_day (
    call_day date NOT NULL,
    CONSTRAINT call_statistics_day_pk PRIMARY KEY (call_day)
);

DO $$ BEGIN
    EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON call_statistics, call_statistics_day FROM %I', current_database());
END $$;

-- migrate: rollback
