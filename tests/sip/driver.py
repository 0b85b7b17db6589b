"""The back end under test as a process: commands as JSON lines in, events as JSON lines out.

sippy's event loop is one per process and a test wants to kill it: `python -m tests.sip.driver
'{"local": ["127.0.0.1", 5060], ...}'` with the fields of `TrunkSettings`. Exits at end of input.
"""

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any

import structlog

from services.call_control.backend import Dial, DialLimits, command_from_dict
from services.call_control.sip.backend import SipBackend
from services.call_control.sip.settings import TrunkSettings
from tests.support.cleared import cleared_numbers


def write(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def forward_events(backend: SipBackend) -> None:
    async for event in backend.events():
        write(event.to_dict())


async def carry_out(backend: SipBackend, message: dict[str, Any]) -> None:
    command = command_from_dict(message)
    if not isinstance(command, Dial):
        backend.send(command)
        return
    limits = DialLimits(
        talk_limit_ms=command.talk_limit_ms,
        ring_a_timeout_ms=command.ring_a_timeout_ms,
        ring_b_timeout_ms=command.ring_b_timeout_ms,
    )
    numbers = await cleared_numbers(command.number_a, command.number_b)
    await backend.dial(command.call_id, numbers, limits)


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    fields = json.loads(sys.argv[1])
    drain_s = fields.pop("drain_s", 0.0)
    addresses: dict[str, Any] = {name: tuple(fields.pop(name)) for name in ("local", "next_hop")}
    routes = {prefix: tuple(address) for prefix, address in fields.pop("routes", {}).items()}
    settings = TrunkSettings(**addresses, routes=routes, **fields)
    backend = SipBackend(settings, lambda: datetime.now(UTC))
    await backend.start()
    forwarding = asyncio.create_task(forward_events(backend))
    write({"type": "Ready"})
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        message = json.loads(line)
        if message["type"] == "Stop":
            break
        await carry_out(backend, message)
    stopping = asyncio.create_task(backend.stop(drain_s))
    while not stopping.done() and (line := await next_line(reader, stopping)):
        await carry_out(backend, json.loads(line))
    await stopping
    await forwarding


async def next_line(reader: asyncio.StreamReader, stopping: asyncio.Task[None]) -> bytes:
    """Read a line, or nothing once the back end has stopped."""
    reading = asyncio.ensure_future(reader.readline())
    await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if reading.done():
        return reading.result()
    reading.cancel()
    return b""


if __name__ == "__main__":
    asyncio.run(main())
