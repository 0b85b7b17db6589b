"""retention: one schedule, the orders that follow from it, receipts as proof (R-D1 to R-D10).

In: `retention-receipt`. Out: `retention-order`. Serves GET /v1/orders/{id} and /v1/sweeps/{id}.
Holds no personal data (D4). Commands: `sweep --as-of <instant>`, `schedule`.
"""
