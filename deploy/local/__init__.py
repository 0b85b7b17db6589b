"""The platform on one machine, on real parts: PostgreSQL, Kafka and the services as processes.

`stack.LocalStack` is the library (demo, tests); `python -m deploy.local` the command behind
`make up`, `make down`, `make status` and `make logs`. Linux only: it relies on the parent-death
signal and on /proc.
"""
