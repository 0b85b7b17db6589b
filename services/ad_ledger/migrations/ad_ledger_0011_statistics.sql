-- anonymous statistics of a day by network, made before its addresses go (R-C2)
-- depends: ad_ledger_0003_partner ad_ledger_0010_find

-- migrate: apply
SET lock_timeout = '5s';

-- Networks of many visitors only; the few of the others stand together, where they are many enough.
CREATE TABLE ad_statistics (
    view_day date NOT NULL,
    -- null = all other networks
    network cidr,
    n_visitors bigint NOT NULL,
    n_views bigint NOT NULL,
    n_completed bigint NOT NULL,
    CONSTRAINT ad_statistics_network_ck CHECK (
        masklen(network) <= CASE family(network) WHEN 4 THEN 24 ELSE 48 END),
    CONSTRAINT ad_statistics_few_ck CHECK (n_visitors >= 10)
);
CREATE UNIQUE INDEX ad_statistics_ux ON ad_statistics (view_day, network) NULLS NOT DISTINCT;

-- Days that were counted, also where nothing was left to tell: none is counted twice.
CREATE TABLE ad_statistics_day (
    view_day date NOT NULL,
    CONSTRAINT ad_statistics_day_pk PRIMARY KEY (view_day)
);

DO $$ BEGIN
    EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON ad_statistics, ad_statistics_day FROM %I', current_database());
END $$;

-- migrate: rollback
