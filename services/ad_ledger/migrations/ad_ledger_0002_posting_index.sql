-- a grant has no reservation: it need not be in the index of reservations' postings; safe beside 0001
-- depends: ad_ledger_0001_ledger

-- migrate: apply
SET lock_timeout = '5s';

-- L5 as before: a lot gives to, and gets back from, a reservation once each. Nulls never collided in
-- the constraint that this replaces, but each grant, two of three postings' index writes, paid for it.
ALTER TABLE posting DROP CONSTRAINT posting_reservation_once_uq;
CREATE UNIQUE INDEX posting_reservation_once_uq
    ON posting (lot_day, ticket_id, reservation_id, operation) WHERE reservation_id IS NOT NULL;

-- migrate: rollback
