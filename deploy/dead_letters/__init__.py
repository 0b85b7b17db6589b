"""Dead letters of a running stack: list, show redacted, replay, discard; every use is logged.

`letter` is pure, `journal` the log in the stack's folder, `box` Kafka, `commands` what is done.
"""
