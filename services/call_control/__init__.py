"""call_control: connects callback and destination number for at most the earned time.

Owns: calls, their legs and CDRs, orders to the process that holds a call, holders' leases.
Reads: `call-request`, `credit-decision`, `call-command`, `retention-order`.
Writes: `credit-request`, `call-start`, `call-end`, `call-status`, `retention-receipt`.
Serves: GET /v1/calls/{call_id}.
Invariants: C1-C5; each is a constraint, a test, or a query in `store.INVARIANTS`.
"""
