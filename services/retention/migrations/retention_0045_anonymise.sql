-- a cut is ordered once, whether its rows are counted first or not
-- depends: retention_0020_person_orders

-- migrate: apply
SET lock_timeout = '5s';

DROP INDEX retention_order_cut_uq;
CREATE UNIQUE INDEX retention_order_cut_uq ON retention_order (kind, before_day, attempt)
    WHERE action IN ('drop', 'anonymise');

-- migrate: rollback
