"""SQL that every service with day tables runs on a timer and exports as a metric."""

D1_NO_DAY_PARTITION_TOO_OLD = r"""
SELECT count(*)
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
WHERE c.relnamespace = 'public'::regnamespace
  AND c.relname ~ '_y[0-9]{4}m[0-9]{2}d[0-9]{2}$'
  AND to_date(right(c.relname, 11), '"y"YYYY"m"MM"d"DD')::timestamp AT TIME ZONE 'UTC'
      < now() - interval '168 hours'
"""
"""Day partitions whose first instant is more than 7 x 24 h ago (R-D2, R-D5)."""

YEARS_KEPT = 3
"""Whole calendar years after its own that a year's partition stays (R-D10)."""
D1_NO_YEAR_PARTITION_TOO_OLD = r"""
SELECT count(*)
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_class p ON p.oid = i.inhparent
JOIN privacy_table t ON t.name = p.relname AND t.partition_of = 'year'
WHERE p.relnamespace = 'public'::regnamespace AND c.relname ~ '_y[0-9]{4}$'
  AND make_timestamptz(right(c.relname, 4)::int + 3 + 1, 1, 1, 0, 0, 0, 'Europe/Berlin')
      < now() - interval '3 hours'
"""
"""Year partitions (Berlin) whose last year is over, and with it a sweep and its order."""

# That a row is missing cannot be seen afterwards, and the service may not read what is kept. What
# can be asked: are the stores and the lists those of what is in force, no more and no fewer.
_LISTS_WITHOUT_OWNER = """
SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_class p ON p.oid = i.inhparent
WHERE p.relnamespace = 'public'::regnamespace AND p.relname IN ('privacy_kept', 'privacy_visitor')
  AND NOT EXISTS (SELECT FROM privacy_protection g WHERE g.released_at IS NULL
                  AND c.relname = p.relname || '_' || replace(g.protection_id::text, '-', ''))
  AND NOT EXISTS (SELECT FROM retention_later l WHERE p.relname = 'privacy_visitor'
                  AND c.relname = 'privacy_visitor_' || replace(l.order_id::text, '-', ''))
"""
_PROTECTIONS_WITHOUT_STORE = """
SELECT count(*) FROM privacy_protection g
CROSS JOIN (VALUES ('privacy_kept'), ('privacy_visitor')) AS wanted (parent)
WHERE g.released_at IS NULL AND (wanted.parent = 'privacy_kept' OR g.names_visitors)
  AND to_regclass(wanted.parent || '_' || replace(g.protection_id::text, '-', '')) IS NULL
"""
_ORDERS_THAT_WAIT_TOO_LONG = """
SELECT count(*) FROM retention_later WHERE received_at < now() - interval '24 hours'
"""

D2_INVARIANTS: dict[str, str] = {
    # D2: a failure means data that is kept although nothing in force names it (D1 as well).
    "d2_nothing_is_kept_without_ground": _LISTS_WITHOUT_OWNER,
    # D2: a failure means that what a hold or restriction kept, or whom it names, was lost.
    "d2_every_protection_has_its_store": _PROTECTIONS_WITHOUT_STORE,
    # D3: a failure means an order that waits for a call which does not end.
    "d3_no_order_waits_too_long": _ORDERS_THAT_WAIT_TOO_LONG,
}
