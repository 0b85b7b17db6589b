"""Looks for what must be gone, everywhere: tables, topics, files of topics, logs and metrics.

A search that can find nothing proves nothing: it is made before the deletion too, where each thing
must be found.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import asyncpg
import httpx
from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.demo.deletion import with_database
from deploy.demo.evidence import Chain
from deploy.demo.people import national_digits
from deploy.local.stack import LocalStack
from schemas.topics import ALL_TOPICS

PLACES = ("tables", "topics", "files", "disk", "logs", "metrics")
"""The first word of every place that is searched; the rest is its name."""
DISK_NEEDLES_MAX = 24
"""The database server's files are large: they are searched for the first three visitors only."""
GONE_WITHIN_S = 20.0
"""Kafka removes a segment's files after its check interval and its delete delay."""
LOOK_AGAIN_S = 1.0
_INDEXES = frozenset({".index", ".timeindex"})
"""Offsets and instants only, made at their full size: a hundred megabytes of zeros."""
_LEAVES = """
SELECT c.oid, c.relname AS name,
       array_agg(a.attname ORDER BY a.attnum) AS columns,
       array_agg(a.atttypid = 'bytea'::regtype ORDER BY a.attnum) AS are_bytes
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
GROUP BY c.oid, c.relname ORDER BY c.relname
"""


_SEPARATORS = b" ()/.-"
_ADDRESS = re.compile(rb"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")


@dataclass(frozen=True, kw_only=True)
class Needle:
    """One thing that must be gone; `what` says what it is, not its value.

    Attributes:
        folded: in lower case and without separators, as it is looked for in texts: so one form
            stands for a number in every spelling and for an id with and without dashes.
        raw: looked for in the bytes as they are; an id may be stored as its sixteen bytes.
        address: looked for among the addresses of the text: 203.0.113.1 is not 203.0.113.11.
    """

    what: str
    folded: bytes | None = None
    raw: bytes | None = None
    address: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Find:
    """Something that is still there."""

    place: str
    what: str
    n: int


Haystack = tuple[str, bytes]
"""A place and what stands there."""


def needles_of(chains: Iterable[Chain]) -> list[Needle]:
    """Return what the stack must not hold any more of these visits."""
    return [needle for chain in chains for needle in _needles(chain)]


def _needles(chain: Chain) -> list[Needle]:
    visit, person = chain.visit, chain.visit.person
    ids = {
        "visitor id": chain.visitor_id,
        "ticket id": visit.ticket_id,
        "call id": visit.call_id,
        "trace id": chain.trace_id,
    }
    texts = {
        "view ticket": visit.ticket,
        "callback number": national_digits(person.callback_number),
        "destination number": national_digits(person.destination_number),
    }
    return [
        *(Needle(what=k, folded=_fold(t.encode()), raw=UUID(t).bytes) for k, t in ids.items()),
        *(Needle(what=k, folded=_fold(t.encode())) for k, t in texts.items()),
        Needle(what="address", address=person.address.encode()),
    ]


def _fold(text: bytes) -> bytes:
    return text.lower().translate(None, _SEPARATORS)


async def everywhere(stack: LocalStack, needles: Sequence[Needle]) -> list[Find]:
    """Return what is found where, summed up by place and by what it is."""
    haystacks = [
        *await tables(stack),
        *await records(stack),
        *await asyncio.to_thread(files, stack),
        *await metrics(stack),
    ]
    # a thread: the view goes on meanwhile
    return await asyncio.to_thread(search, haystacks, needles)


async def on_disk(stack: LocalStack, needles: Sequence[Needle]) -> list[Find]:
    """Return what the database server's own files hold: pages and write-ahead log.

    A dropped partition's files are gone at once; what could stay are copies that the server makes:
    its write-ahead log, and the planner's statistics (none are taken of columns that name anybody).
    """
    folders = await _folders_of_data(stack)
    return await asyncio.to_thread(lambda: search(disk(folders), needles[:DISK_NEEDLES_MAX]))


async def until_gone(stack: LocalStack, needles: Sequence[Needle]) -> list[Find]:
    """Search again until nothing is found or the time has passed; return what is left."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + GONE_WITHIN_S
    while True:
        found = [*await everywhere(stack, needles), *await unemptied(stack)]
        if not found or loop.time() > deadline:
            return found
        await asyncio.sleep(LOOK_AGAIN_S)


def search(haystacks: Iterable[Haystack], needles: Sequence[Needle]) -> list[Find]:
    """Return what stands where, counted by needles."""
    found: Counter[tuple[str, str]] = Counter()
    for place, raw in haystacks:
        folded, addresses = _fold(raw), set(_ADDRESS.findall(raw))
        for needle in needles:
            if (
                (needle.folded is not None and needle.folded in folded)
                or (needle.raw is not None and needle.raw in raw)
                or needle.address in addresses
            ):
                found[place, needle.what] += 1
    return [Find(place=place, what=what, n=n) for (place, what), n in sorted(found.items())]


# --- places


async def tables(stack: LocalStack) -> list[Haystack]:
    """Return every table of every service's database as text; bytes as the text they hold."""
    found: list[Haystack] = []
    for declared in with_database(stack):
        connection = await asyncpg.connect(stack.admin_dsn(declared.name))
        try:
            for leaf in await connection.fetch(_LEAVES):
                text = await _as_text(connection, leaf)
                found.append((f"tables {declared.name}.{leaf['name']}", text.encode()))
        finally:
            await connection.close()
    return found


async def _as_text(connection: Any, leaf: asyncpg.Record) -> str:
    columns = [
        f"encode(\"{name}\", 'escape')" if is_bytes else f'"{name}"::text'
        for name, is_bytes in zip(leaf["columns"], leaf["are_bytes"], strict=True)
    ]
    line = f"concat_ws(E'\\t', {', '.join(columns)}, '')"
    # names come from the catalogue
    query = f"SELECT string_agg({line}, E'\\n') FROM \"{leaf['name']}\""  # noqa: S608
    return await connection.fetchval(query) or ""


async def records(stack: LocalStack) -> list[Haystack]:
    """Return every record of every topic of the registry, as a consumer would get it."""
    async with _Reader(stack) as reader:
        spans = await reader.spans()
        ends = {
            partition: end
            for parts in spans.values()
            for partition, (begin, end) in parts.items()
            if begin < end
        }
        pieces = await reader.read(ends)
    return [(f"topics {topic}", b"\n".join(pieces.get(topic, []))) for topic in spans]


def files(stack: LocalStack) -> list[Haystack]:
    """Return the files in which the broker keeps topics, deleted segments too, and all logs."""
    kept = [
        path
        for data in _kafka_data(stack)
        for path in sorted(data.rglob("*"))
        if path.is_file() and path.suffix not in _INDEXES
    ]
    logs = sorted(stack.layout.logs.iterdir())
    return [
        *((f"files {path.parent.name}/{path.name}", _content(path)) for path in kept),
        *((f"logs {path.name}", _content(path)) for path in logs),
    ]


def disk(folders: Sequence[Path]) -> Iterator[Haystack]:
    """Give out the database server's own files one by one: pages and write-ahead log."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield f"disk {folder.name}/{path.name}", _content(path)


async def _folders_of_data(stack: LocalStack) -> list[Path]:
    """Return where the services' databases and the log lie; the templates never held a row."""
    connection = await asyncpg.connect(stack.admin_dsn())
    try:
        oids = await connection.fetch(
            "SELECT oid FROM pg_database WHERE datname = ANY($1)",
            [declared.name for declared in with_database(stack)],
        )
    finally:
        await connection.close()
    root = stack.layout.folder / "postgres"
    return [root / "pg_wal", root / "global", *(root / "base" / str(r["oid"]) for r in oids)]


def _kafka_data(stack: LocalStack) -> list[Path]:
    return [stack.layout.folder / name / "data" for name in stack.kafka_names]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # gone since it was listed
        return b""


async def metrics(stack: LocalStack) -> list[Haystack]:
    """Return what each service exports."""
    found = []
    async with httpx.AsyncClient(trust_env=False) as http:
        for declared in stack.declarations:
            answer = await http.get(f"{stack.admin_url(declared.name)}/metrics")
            found.append((f"metrics {declared.name}", answer.content))
    return found


# --- topics


async def unemptied(stack: LocalStack) -> list[Find]:
    """Return the topics of personal data that still hold records, or bytes on disk."""
    found = []
    async with _Reader(stack) as reader:
        spans = await reader.spans()
    for topic in ALL_TOPICS:
        if not topic.personal:
            continue
        n_records = sum(end - begin for begin, end in spans[topic.name].values())
        n_bytes = sum(
            path.stat().st_size
            for data in _kafka_data(stack)
            for part in range(topic.partitions)
            for path in data.glob(f"{topic.name}-{part}*/*.log*")
        )
        for what, n in (("records", n_records), ("bytes on disk", n_bytes)):
            if n:
                found.append(Find(place=f"topics {topic.name}", what=what, n=n))
    return found


Spans = dict[str, dict[TopicPartition, tuple[int, int]]]


class _Reader:
    """Reads topics from begin to end, without a group."""

    def __init__(self, stack: LocalStack) -> None:
        self._consumer = AIOKafkaConsumer(
            **stack.kafka.options(), group_id=None, enable_auto_commit=False
        )

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def spans(self) -> Spans:
        """Return the first and the next offset of each partition, by topic."""
        partitions = [
            TopicPartition(topic.name, number)
            for topic in ALL_TOPICS
            for number in range(topic.partitions)
        ]
        begins = await self._consumer.beginning_offsets(partitions)
        ends = await self._consumer.end_offsets(partitions)
        spans: Spans = {topic.name: {} for topic in ALL_TOPICS}
        for partition in partitions:
            spans[partition.topic][partition] = (begins[partition], ends[partition])
        return spans

    async def read(self, ends: Mapping[TopicPartition, int]) -> dict[str, list[bytes]]:
        """Return keys, values and headers of all records up to the offsets, by topic."""
        self._consumer.assign(list(ends))
        await self._consumer.seek_to_beginning(*ends)
        pieces: dict[str, list[bytes]] = {}
        left = set(ends)
        while left:
            polled = await self._consumer.getmany(timeout_ms=200)
            for partition, records in polled.items():
                texts = pieces.setdefault(partition.topic, [])
                for record in records:
                    texts += [record.key or b"", record.value or b""]
                    texts += [value or b"" for _, value in record.headers]
            left = {p for p in left if await self._consumer.position(p) < ends[p]}
        return pieces
