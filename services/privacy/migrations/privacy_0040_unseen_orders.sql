-- an order that comes while another one is carried out is noted unseen, and waits for nothing (D2, D3)
-- depends: privacy_0030_grown_tables

-- migrate: apply
SET lock_timeout = '5s';

-- Nobody has looked yet what is to be done about it: before anything else is carried out, somebody does.
ALTER TABLE retention_later ADD COLUMN is_unseen boolean NOT NULL DEFAULT false;

-- migrate: rollback
