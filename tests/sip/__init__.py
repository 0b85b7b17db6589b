"""Tests of the SIP back end and the demo telephones, over the wire."""
