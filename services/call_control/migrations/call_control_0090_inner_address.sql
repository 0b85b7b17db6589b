-- no statistics of a 6to4 network so small that it is one IPv4 address (R-C2)
-- depends: call_control_0011_statistics

-- migrate: apply
SET lock_timeout = '5s';

-- not of rows of before: they stay as they were counted
ALTER TABLE call_statistics ADD CONSTRAINT call_statistics_inner_ck
    CHECK (NOT (network <<= '2002::/16' AND masklen(network) > 40)) NOT VALID;

-- migrate: rollback
