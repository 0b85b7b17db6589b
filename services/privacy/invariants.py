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
