"""Calls over a SIP trunk: third-party call control (RFC 3725) on the sippy stack.

`SipBackend` (backend.py) is the `CallBackend`; one per process, for sippy's event loop is one.
`call.py` connects two legs, `leg.py` is one dialog, `stack.py` tames sippy, `sdp.py` is text only.

SIP messages hold telephone numbers: nothing in this package logs a message or a header.
"""
