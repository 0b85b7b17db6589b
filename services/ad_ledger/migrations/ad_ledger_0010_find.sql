-- an erasure finds a visitor's rows by index in every table, and an address its visitors (R-G3)
-- depends: ad_ledger_0002_protection ad_ledger_0002_posting_index

-- migrate: apply
SET lock_timeout = '5s';

CREATE INDEX ad_view_visitor ON ad_view (visitor_id);
CREATE INDEX posting_visitor ON posting (visitor_id);
CREATE INDEX ad_view_address_address ON ad_view_address (address);

-- migrate: rollback
