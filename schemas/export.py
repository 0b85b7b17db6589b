"""Write the contract for others to read: JSON Schema per event and AsyncAPI 3.0, from the registry.

`python -m schemas.export` writes `schemas/json/` and `schemas/asyncapi.yaml`; `--check` writes
nothing and fails when they are stale. What is exported is committed and never edited by hand.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from schemas.envelope import CONTENT_TYPE, ORIGIN, SPEC_VERSION
from schemas.topics import ALL_TOPICS, MESSAGE_BYTES_MAX, REGISTRY, TYPE_PREFIX, Topic

FOLDER = Path(__file__).resolve().parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Json = dict[str, Any]


def json_schema(topic: Topic) -> Json:
    """Return the JSON Schema of a topic's events."""
    schema = topic.model.model_json_schema()
    return {"$schema": DIALECT, "$id": f"urn:{topic.type.replace('.', ':')}", **schema}


def asyncapi() -> Json:
    """Return the AsyncAPI 3.0 document of all topics, dead letters included."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Minutes",
            "version": "1.0.0",
            "description": (
                "Every topic on which the services of Minutes meet. CloudEvents 1.0 in Kafka's "
                "binary mode: attributes as headers, the value is the plain JSON data."
            ),
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {topic.name: _channel(topic) for topic in ALL_TOPICS},
        "operations": {name: operation for t in ALL_TOPICS for name, operation in _operations(t)},
        "components": {
            "messages": {topic.name: _message(topic) for topic in REGISTRY},
            "schemas": {
                "cloudEventHeaders": _headers(),
                "deadLetterHeaders": _dead_letter_headers(),
            },
        },
    }


def files() -> dict[Path, str]:
    """Return what the export consists of: text by path."""
    found = {
        FOLDER / "json" / f"{t.name}.v{t.version}.json": _to_json(json_schema(t)) for t in REGISTRY
    }
    found[FOLDER / "asyncapi.yaml"] = _to_yaml(asyncapi())
    return found


def stale(expected: dict[Path, str]) -> list[Path]:
    """Return files that differ from `expected`, are missing, or belong to no topic any more."""
    differing = [p for p, text in expected.items() if not p.is_file() or p.read_text() != text]
    orphans = [p for p in sorted((FOLDER / "json").glob("*")) if p not in expected]
    return differing + orphans


def main(arguments: Sequence[str]) -> int:
    """Write the export, or with `--check` say what is stale; return the exit status."""
    expected = files()
    outdated = stale(expected)
    names = ", ".join(str(path.relative_to(FOLDER.parent)) for path in outdated)
    if "--check" in arguments:
        if outdated:
            sys.stderr.write(f"stale: {names}; run: python -m schemas.export\n")
        return 1 if outdated else 0
    for path in outdated:
        if path in expected:
            path.parent.mkdir(exist_ok=True)
            path.write_text(expected[path])
        else:
            path.unlink()
    sys.stdout.write(f"written: {names or 'nothing, all is fresh'}\n")
    return 0


def _channel(topic: Topic) -> Json:
    configs = topic.configs()
    return {
        "address": topic.name,
        "description": topic.description,
        "messages": {_source(topic): {"$ref": f"#/components/messages/{_source(topic)}"}}
        if not topic.is_dead_letter
        else {_source(topic): _dead_letter_message(topic)},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": {
                    "cleanup.policy": topic.cleanup.split(","),
                    "retention.ms": topic.retention_ms,
                    "delete.retention.ms": int(configs["delete.retention.ms"]),
                    "max.message.bytes": int(configs["max.message.bytes"]),
                },
                "bindingVersion": "0.5.0",
            }
        },
        "x-key": topic.key,
        "x-producers": list(topic.producers),
        "x-consumers": list(topic.consumers),
        "x-age-max-ms": topic.age_max_ms,
        "x-segment-ms": topic.segment_ms,
        "x-personal-data": [kind.value for kind in topic.kinds],
        **({"x-dead-letter-of": _source(topic)} if topic.is_dead_letter else {}),
        **({"x-dead-letter": topic.dead_letter.name} if topic.consumers else {}),
    }


def _operations(topic: Topic) -> list[tuple[str, Json]]:
    sends = [(f"{service}-sends-{topic.name}", "send", service) for service in topic.producers]
    reads = [
        (f"{service}-receives-{topic.name}", "receive", service) for service in topic.consumers
    ]
    channel = {"$ref": f"#/channels/{topic.name}"}
    return [
        (name, {"action": action, "channel": channel, "x-service": service})
        for name, action, service in sends + reads
    ]


def _message(topic: Topic) -> Json:
    return {
        "name": topic.type,
        "title": topic.model.__name__,
        "summary": topic.description,
        "contentType": CONTENT_TYPE,
        "headers": {
            "allOf": [
                {"$ref": "#/components/schemas/cloudEventHeaders"},
                {"type": "object", "properties": {"ce_type": {"const": topic.type}}},
            ]
        },
        "payload": {"$ref": f"./json/{topic.name}.v{topic.version}.json"},
        "bindings": {"kafka": {"key": _key_schema(topic), "bindingVersion": "0.5.0"}},
    }


def _dead_letter_message(topic: Topic) -> Json:
    return {
        "name": f"{topic.name}-record",
        "summary": "The record as it came, with where it came from and why it was refused.",
        "headers": {"$ref": "#/components/schemas/deadLetterHeaders"},
        # poison may be anything, so that the payload promises nothing
        "payload": {"type": ["object", "string", "null"]},
    }


def _source(topic: Topic) -> str:
    return topic.name.removesuffix("-dlq") if topic.is_dead_letter else topic.name


def _key_schema(topic: Topic) -> Json:
    schema: Json = topic.model.model_json_schema()
    found: Json = schema["properties"][topic.key]
    if "$ref" in found:  # an enum: the key stands in no place where it could be looked up
        found = schema["$defs"][found["$ref"].rpartition("/")[2]]
    return {key: value for key, value in found.items() if key != "title"}


def _headers() -> Json:
    return {
        "type": "object",
        "description": "CloudEvents 1.0 attributes and the W3C trace context; nothing personal.",
        "required": ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time"],
        "properties": {
            "ce_specversion": {"const": SPEC_VERSION},
            "ce_id": {"type": "string", "format": "uuid", "description": "UUIDv7 of the event."},
            "ce_type": {"type": "string", "pattern": f"^{TYPE_PREFIX.replace('.', '[.]')}[.]"},
            "ce_source": {"type": "string", "pattern": "^/services/[a-z_]+$"},
            "ce_time": {
                "type": "string",
                "format": "date-time",
                "description": "When it happened, by the producer's clock; of a visitor's event: "
                "the gateway's.",
            },
            "ce_subject": {"type": "string", "description": "The record key."},
            ORIGIN: {
                "type": "string",
                "format": "date-time",
                "description": "When that happened which this event stems from, where it is "
                "another one: age counts from there through every copy.",
            },
            "content-type": {"const": CONTENT_TYPE},
            "traceparent": {
                "type": "string",
                "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
            },
        },
        "x-message-bytes-max": MESSAGE_BYTES_MAX,
    }


def _dead_letter_headers() -> Json:
    names = ("topic", "partition", "offset", "reason", "service")
    return {
        "type": "object",
        "description": "The record's own headers, and what is said of its refusal.",
        "required": [f"dead_letter_{name}" for name in names],
        "properties": {f"dead_letter_{name}": {"type": "string"} for name in names},
    }


def _to_json(value: Json) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _to_yaml(value: Json) -> str:
    plain = json.loads(json.dumps(value))  # no shared objects, so that no YAML anchors appear
    head = (
        "# Exported by `python -m schemas.export` from schemas/topics.py; never edited by hand.\n"
    )
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
