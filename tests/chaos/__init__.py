"""Fault runs: visitors earn and call while processes, brokers and the database fail (issue 4)."""
