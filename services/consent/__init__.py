"""consent: records what a visitor decided and publishes what is in force (R-F2, R-F3).

In: `consent`, `retention-order`. Out: `consent-state`, `retention-receipt`. Serves
GET /v1/visitors/{id}/consent. Stores proofs that no call or ad can be linked to after 7 x 24 h.
"""
