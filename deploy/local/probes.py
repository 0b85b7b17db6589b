"""Is it ready? One question per kind of server; the answer is yes or no, never an exception."""

import asyncio
import contextlib
import logging

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from services.chassis.health import STANDING_BY
from services.chassis.kafka import KafkaLogin

HTTP_OK = 200
PROBE_TIMEOUT_S = 3.0


async def http_get(port: int, path: str) -> tuple[int, str] | None:
    """GET a path of a local server; status and text, None when there is no answer."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            await writer.drain()
            answer = (await reader.read()).decode()
            return int(answer.split()[1]), answer
    except (OSError, TimeoutError, ValueError, IndexError):
        return None
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def http_status(port: int, path: str) -> int | None:
    """GET a path of a local server; its status, None when there is no answer."""
    found = await http_get(port, path)
    return None if found is None else found[0]


async def metric(port: int, line: str) -> float | None:
    """Return the value of one line of a local server's metrics; None when it is not there."""
    answer = await http_get(port, "/metrics")
    rows = answer[1].splitlines() if answer else []
    return next((float(row.rpartition(" ")[2]) for row in rows if row.startswith(f"{line} ")), None)


async def is_service_ready(admin_port: int) -> bool:
    """Whether a service says so itself; one that stands by is as ready as it can be."""
    answer = await http_get(admin_port, "/readyz")
    return answer is not None and (answer[0] == HTTP_OK or answer[1].endswith(STANDING_BY))


async def is_postgres_ready(dsn: str) -> bool:
    """Whether PostgreSQL answers a query."""
    try:
        conn = await asyncpg.connect(dsn, timeout=PROBE_TIMEOUT_S)
        try:
            await conn.execute("SELECT 1")
        finally:
            await conn.close(timeout=PROBE_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return True


async def is_kafka_ready(login: KafkaLogin) -> bool:
    """Whether the first broker of the address lets an administrator in and names its cluster."""
    host, _, port = login.bootstrap.partition(",")[0].rpartition(":")
    try:
        # a plain connection first: the client logs an error for every refused one
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
    logger = logging.getLogger("aiokafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    admin = AIOKafkaAdminClient(**login.options(), request_timeout_ms=3000)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await admin.start()
            return bool((await admin.describe_cluster())["brokers"])
    except (OSError, TimeoutError, KafkaError):
        return False
    finally:
        await admin.close()
        logger.setLevel(level)
