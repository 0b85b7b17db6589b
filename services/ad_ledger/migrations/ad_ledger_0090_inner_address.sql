-- no statistics of a 6to4 network so small that it is one IPv4 address (R-C2)
-- depends: ad_ledger_0011_statistics

-- migrate: apply
SET lock_timeout = '5s';

-- not of rows of before: they stay as they were counted
ALTER TABLE ad_statistics ADD CONSTRAINT ad_statistics_inner_ck
    CHECK (NOT (network <<= '2002::/16' AND masklen(network) > 40)) NOT VALID;

-- migrate: rollback
