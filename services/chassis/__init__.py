"""What every service stands on: Kafka, PostgreSQL, outbox, clock, metrics; no business word."""
