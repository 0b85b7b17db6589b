"""How many bytes the partitions of topics have on the brokers' disks.

Asked for by DescribeLogDirs, which no client library in use has: what is readable says nothing
about bytes that can no longer be read, and are still there (hot-path.md 4a, `delete_records`).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Int64, Schema, String
from typing_extensions import override

from schemas.topics import Topic
from services.chassis.kafka import KafkaLogin

_REQUEST_TIMEOUT_MS = 10_000


class OnDisk(NamedTuple):
    """Bytes of one partition: the segments of all replicas, indexes and what is renamed aside not.

    `topic` is the registry's name.
    """

    topic: str
    partition: int
    n_bytes: int


class _LogDirsResponse(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 35
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            Array(
                ("error_code", Int16),
                ("log_dir", String("utf-8")),
                (
                    "topics",
                    Array(
                        ("name", String("utf-8")),
                        (
                            "partitions",
                            Array(
                                ("partition_index", Int32),
                                ("partition_size", Int64),
                                ("offset_lag", Int64),
                                ("is_future_key", Boolean),
                            ),
                        ),
                    ),
                ),
            ),
        ),
    )


class _LogDirsRequestV1(RequestStruct):  # type: ignore[misc]
    API_KEY = 35
    API_VERSION = 1
    RESPONSE_TYPE = _LogDirsResponse
    SCHEMA = Schema(
        ("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))),
    )


class _LogDirsRequest(Request[_LogDirsRequestV1]):  # type: ignore[misc]
    API_KEY = 35

    def __init__(self, topics: Sequence[tuple[str, Sequence[int]]]) -> None:
        self._topics = topics

    @override
    def build(self, request_struct_class: type[_LogDirsRequestV1]) -> _LogDirsRequestV1:
        return request_struct_class(list(self._topics))


async def measure_bytes(login: KafkaLogin, prefix: str, topics: Sequence[Topic]) -> list[OnDisk]:
    """Return how many bytes each partition has, over all brokers; a moved one's copies included.

    Raises:
        KafkaError: a broker is away, has a disk that cannot be read, or refuses us.
    """
    names = {prefix + topic.name: topic for topic in topics}
    request = _LogDirsRequest(
        [(name, list(range(topic.partitions))) for name, topic in names.items()]
    )
    found: Counter[tuple[str, int]] = Counter()
    admin = AIOKafkaAdminClient(**login.options(), request_timeout_ms=_REQUEST_TIMEOUT_MS)
    await admin.start()
    try:
        for broker in (await admin.describe_cluster())["brokers"]:
            found += _sizes(await admin._send_request_to_node(broker["node_id"], request))  # noqa: SLF001 - no public way
    finally:
        await admin.close()
    return [
        OnDisk(topic.name, partition, found[name, partition])
        for name, topic in names.items()
        for partition in range(topic.partitions)
    ]


def _sizes(response: Any) -> Counter[tuple[str, int]]:
    if not response.results:
        # who may not ask is told of no disk at all
        raise for_code(31)("DescribeLogDirs: no right to describe the cluster")
    sizes: Counter[tuple[str, int]] = Counter()
    for code, _, topics in response.results:
        if code:
            raise for_code(code)("DescribeLogDirs")
        for name, partitions in topics:
            for partition, n_bytes, _lag, _is_future in partitions:
                sizes[name, partition] += n_bytes
    return sizes
