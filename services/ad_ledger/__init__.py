"""ad_ledger: connection time earned by advertising, as double entry in milliseconds.

Owns: views, lots, postings, reservations, tariffs.
Reads: `ad-view`, `credit-request`, `call-start`, `call-end`, `retention-order` (key: visitor).
Writes: `credit`, `credit-decision`, `retention-receipt`.
Serves: GET /v1/visitors/{id}/balance.
Invariants: L1-L6 of docs and architecture; each is a constraint or a query in `store.INVARIANTS`.
"""
