"""The wire contract: event models, topic registry, envelope, view ticket, and their exports.

Everything here is pure: no I/O, no clock, no framework. Services translate these models into
their own domain types; a wire version bump never touches a rule.
"""
