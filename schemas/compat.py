"""Hold the contract as it stands against an earlier one: may the two versions run side by side?

`python -m schemas.compat [git-ref]` compares the models, exports and examples of this tree with
what the ref has committed (default: the newest tag `contract-*`, else HEAD's parent), names every
change and who rolls first, and exits 1 on a breaking one. Within a version only two things may
happen: an optional field with a default is added, an example is added. All else is a new version.
The rules are pure; git is only read. Exit status 2: there was nothing to compare with.
"""

import graphlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from typing_extensions import override

from schemas import export
from schemas.topics import REGISTRY
from schemas.wire import WireModel

Json = dict[str, Any]
Models = Mapping[str, type[WireModel]]

TAGS = "contract-*"
HEADER_SCHEMAS = ("cloudEventHeaders", "deadLetterHeaders")
_ANNOTATIONS = frozenset({"$schema", "$id", "$defs", "title", "description", "examples"})
_STRUCTURE = frozenset({"type", "properties", "required", "items", "enum", "default"})
_LOWER_BOUNDS = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems"})
_UPPER_BOUNDS = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems"})
_DEPTH_MAX = 32


class ContractError(RuntimeError):
    """There is no earlier contract to compare with; the message says what mends it."""


class Kind(StrEnum):
    """What happened to a place of the contract."""

    FIELD_ADDED = "field added"
    FIELD_REMOVED = "field removed"
    FIELD_REQUIRED = "field newly required"
    RETYPED = "type changed"
    TIGHTENED = "tightened"
    LOOSENED = "loosened"
    ENUM_NARROWED = "enum narrowed"
    ENUM_WIDENED = "enum widened"
    DEFAULT_CHANGED = "default changed"
    OLD_EXAMPLE_REFUSED = "old example refused by the new contract"
    NEW_EXAMPLE_REFUSED = "new example refused by the old contract"
    TOPIC_ADDED = "topic added"
    TOPIC_REMOVED = "topic removed"
    VERSION_CHANGED = "version changed"
    KEY_CHANGED = "key changed"
    PARTITIONS_CHANGED = "partition count changed"
    CLEANUP_CHANGED = "cleanup policy changed"
    PERSONAL_AGE_LENGTHENED = "personal data kept longer"
    PERSONAL_NOW = "personal data newly carried"
    AGE_CHANGED = "retention changed"
    KIND_OF_DATA_ADDED = "kind of personal data added"
    KIND_OF_DATA_REMOVED = "kind of personal data removed"
    SIZE_LOWERED = "message size lowered"
    SIZE_RAISED = "message size raised"
    PRODUCER_ADDED = "producer added"
    PRODUCER_REMOVED = "producer removed"
    CONSUMER_ADDED = "consumer added"
    CONSUMER_REMOVED = "consumer removed"


BENIGN = frozenset(
    {
        Kind.FIELD_ADDED,
        Kind.TOPIC_ADDED,
        Kind.AGE_CHANGED,
        Kind.KIND_OF_DATA_ADDED,
        Kind.KIND_OF_DATA_REMOVED,
        Kind.SIZE_RAISED,
        Kind.PRODUCER_ADDED,
        Kind.CONSUMER_ADDED,
    }
)
# A reader must know what is new before anybody writes it ...
_CONSUMERS_FIRST = frozenset(
    {
        Kind.FIELD_ADDED,
        Kind.LOOSENED,
        Kind.ENUM_WIDENED,
        Kind.NEW_EXAMPLE_REFUSED,
        Kind.TOPIC_ADDED,
        Kind.SIZE_RAISED,
        Kind.PRODUCER_ADDED,
        Kind.CONSUMER_ADDED,
    }
)
# ... and nobody may write what a reader is about to refuse, or stops to read.
_PRODUCERS_FIRST = frozenset(
    {
        Kind.FIELD_REMOVED,
        Kind.FIELD_REQUIRED,
        Kind.TIGHTENED,
        Kind.ENUM_NARROWED,
        Kind.OLD_EXAMPLE_REFUSED,
        Kind.TOPIC_REMOVED,
        Kind.SIZE_LOWERED,
        Kind.PRODUCER_REMOVED,
        Kind.CONSUMER_REMOVED,
    }
)


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What one commit says of the wire.

    Attributes:
        asyncapi: the document of all topics.
        schemas: exported JSON Schema by `<topic>.v<version>`.
        examples: good events by `<topic>.v<version>` and name.
    """

    asyncapi: Json
    schemas: dict[str, Json]
    examples: dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference.

    Attributes:
        subject: topic, or name of a header schema.
        place: field, example or nothing.
        detail: from what to what, in words; never an example's values.
        first: services to roll before `then`; both empty where no order helps.
    """

    subject: str
    kind: Kind
    place: str = ""
    detail: str = ""
    first: tuple[str, ...] = ()
    then: tuple[str, ...] = ()

    @property
    def is_breaking(self) -> bool:
        """Whether old and new cannot run side by side, or stored records are lost."""
        return self.kind not in BENIGN

    @override
    def __str__(self) -> str:
        verdict = "BREAKING" if self.is_breaking else "benign"
        where = f"{self.subject} {self.place}".strip()
        detail = f" ({self.detail})" if self.detail else ""
        order = ""
        if self.first:
            order = f"; roll first: {', '.join(self.first)}"
            order += f"; then: {', '.join(self.then)}" if self.then else ""
        return f"{verdict:8} {where}: {self.kind}{detail}{order}"


@dataclass(frozen=True)
class _Finding:
    """A difference between two schemas, of no topic yet."""

    kind: Kind
    place: str
    detail: str = ""


# ---------------------------------------------------------------------- comparing


def compare(old: Contract, new: Contract, models: Models) -> list[Change]:
    """Return every change from `old` to `new`, breaking ones first.

    Args:
        models: today's models by `<topic>.v<version>`, which old examples must pass.
    """
    changes = [
        *_topic_changes(old, new),
        *_payload_changes(old, new),
        *_header_changes(old, new),
        *_example_changes(old, new, models),
    ]
    return sorted(changes, key=lambda change: not change.is_breaking)


def roll_order(changes: Iterable[Change]) -> list[str] | None:
    """Return the services in an order that suits all changes; None where they contradict."""
    before: dict[str, set[str]] = {}
    for change in changes:
        for service in change.then:
            before.setdefault(service, set()).update(set(change.first) - {service})
        for service in change.first:
            before.setdefault(service, set())
    try:
        return list(graphlib.TopologicalSorter(before).static_order())
    except graphlib.CycleError:
        return None


def _topic_changes(old: Contract, new: Contract) -> Iterator[Change]:
    before, after = _channels(old), _channels(new)
    for name in sorted(before.keys() | after.keys()):
        for finding in _topic_findings(name, before, after):
            yield _change(old, new, name, finding)
    for name in sorted(before.keys() & after.keys()):
        versions = _schema_name(old, name), _schema_name(new, name)
        if versions[0] != versions[1]:
            detail = f"{versions[0]} to {versions[1]}: records on the topic become unreadable"
            yield _change(old, new, name, _Finding(Kind.VERSION_CHANGED, "", detail))


def _topic_findings(
    name: str, before: Mapping[str, Json], after: Mapping[str, Json]
) -> Iterator[_Finding]:
    source = name.removesuffix("-dlq")
    if name in before and name in after:
        yield from _channel_findings(before[name], after[name])
    elif name in before and (source == name or source in after):
        yield _Finding(Kind.TOPIC_REMOVED, "")
    elif name in after and source == name:  # a dead letter comes and goes with its topic
        yield _Finding(Kind.TOPIC_ADDED, "")


def _channel_findings(old: Json, new: Json) -> Iterator[_Finding]:
    yield from _setting_findings(old, new)
    yield from _age_findings(old, new)
    if "x-dead-letter-of" in old:
        return  # its writers follow from its topic's readers, where a change is named
    for role in ("producer", "consumer"):
        was, now = set(old[f"x-{role}s"]), set(new[f"x-{role}s"])
        for service in sorted(was - now):
            yield _Finding(Kind(f"{role} removed"), "", service)
        for service in sorted(now - was):
            yield _Finding(Kind(f"{role} added"), "", service)


def _setting_findings(old: Json, new: Json) -> Iterator[_Finding]:
    kafka, other = old["bindings"]["kafka"], new["bindings"]["kafka"]
    configs, others = kafka["topicConfiguration"], other["topicConfiguration"]
    for kind, was, now in (
        (Kind.KEY_CHANGED, old["x-key"], new["x-key"]),
        (Kind.PARTITIONS_CHANGED, kafka["partitions"], other["partitions"]),
        (Kind.CLEANUP_CHANGED, configs["cleanup.policy"], others["cleanup.policy"]),
    ):
        if was != now:
            yield _Finding(kind, "", f"{was} to {now}")
    was, now = configs["max.message.bytes"], others["max.message.bytes"]
    if was != now:
        yield _Finding(
            Kind.SIZE_RAISED if now > was else Kind.SIZE_LOWERED, "", f"{was} to {now} bytes"
        )


def _age_findings(old: Json, new: Json) -> Iterator[_Finding]:
    was, now = old["x-age-max-ms"], new["x-age-max-ms"]
    kinds, others = set(old["x-personal-data"]), set(new["x-personal-data"])
    if was != now:
        lengthened = now > was and bool(others)
        kind = Kind.PERSONAL_AGE_LENGTHENED if lengthened else Kind.AGE_CHANGED
        yield _Finding(kind, "", f"{was} to {now} ms")
    for added in sorted(others - kinds):
        yield _Finding(Kind.KIND_OF_DATA_ADDED if kinds else Kind.PERSONAL_NOW, "", added)
    for removed in sorted(kinds - others):
        yield _Finding(Kind.KIND_OF_DATA_REMOVED, "", removed)


def _payload_changes(old: Contract, new: Contract) -> Iterator[Change]:
    for name in sorted(old.schemas.keys() & new.schemas.keys()):
        for finding in schema_findings(old.schemas[name], new.schemas[name]):
            yield _change(old, new, _topic_of(name), finding)


def _header_changes(old: Contract, new: Contract) -> Iterator[Change]:
    before, after = (c.asyncapi["components"]["schemas"] for c in (old, new))
    for name in HEADER_SCHEMAS:
        for finding in schema_findings(before.get(name, {}), after.get(name, {})):
            # headers are read and written by everybody: no order of services helps
            yield Change(
                subject=name, kind=finding.kind, place=finding.place, detail=finding.detail
            )


def _example_changes(old: Contract, new: Contract, models: Models) -> Iterator[Change]:
    # an example of a topic or version that the other side lacks is named with that topic
    for schema_name, name, event in _all_examples(old, known_to=new):
        refusals = [
            *_model_refusal(models[schema_name], event),
            *_schema_refusal(new.schemas[schema_name], event),
        ]
        for detail in refusals:
            finding = _Finding(Kind.OLD_EXAMPLE_REFUSED, name, detail)
            yield _change(old, new, _topic_of(schema_name), finding)
    for schema_name, name, event in _all_examples(new, known_to=old):
        for detail in _schema_refusal(old.schemas[schema_name], event):
            finding = _Finding(Kind.NEW_EXAMPLE_REFUSED, name, detail)
            yield _change(old, new, _topic_of(schema_name), finding)


def _all_examples(contract: Contract, *, known_to: Contract) -> Iterator[tuple[str, str, Any]]:
    for schema_name, examples in sorted(contract.examples.items()):
        if schema_name in known_to.schemas:
            yield from ((schema_name, name, event) for name, event in sorted(examples.items()))


def _model_refusal(model: type[WireModel], event: Any) -> list[str]:
    try:
        model.model_validate_json(json.dumps(event))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        return [f"model: {_place(first['loc'])} {first['type']}"]
    return []


def _schema_refusal(schema: Json, event: Any) -> list[str]:
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    error = next(iter(validator.iter_errors(event)), None)
    return [] if error is None else [f"schema: {_place(error.absolute_path)} {error.validator}"]


def _place(parts: Iterable[str | int]) -> str:
    return ".".join(map(str, parts)) or "event"


def _change(old: Contract, new: Contract, topic: str, finding: _Finding) -> Change:
    channels = [found for c in (old, new) if (found := _channels(c).get(topic)) is not None]
    producers = tuple(sorted({name for c in channels for name in c["x-producers"]}))
    consumers = tuple(sorted({name for c in channels for name in c["x-consumers"]}))
    first: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    if finding.kind in _CONSUMERS_FIRST:
        first, then = consumers, producers
    elif finding.kind in _PRODUCERS_FIRST:
        first, then = producers, consumers
    return Change(
        subject=topic,
        kind=finding.kind,
        place=finding.place,
        detail=finding.detail,
        first=first,
        then=then,
    )


def _channels(contract: Contract) -> dict[str, Json]:
    found: dict[str, Json] = contract.asyncapi["channels"]
    return found


def _schema_name(contract: Contract, topic: str) -> str:
    message = contract.asyncapi["components"]["messages"].get(topic, {})
    payload = str(message.get("payload", {}).get("$ref", ""))
    return payload.removeprefix("./json/").removesuffix(".json")


def _topic_of(schema_name: str) -> str:
    return schema_name.rpartition(".v")[0]


# ---------------------------------------------------------------------- two JSON schemas


@dataclass(frozen=True)
class _Node:
    """A place of a schema: references resolved, "or null" taken off."""

    core: Json
    is_nullable: bool
    root: Json

    def at(self, schema: Json) -> "_Node":
        """Return a place below this one."""
        return _node(schema, self.root)


def schema_findings(old: Json, new: Json) -> list[_Finding]:
    """Return what changed between two exported schemas of one version."""
    return list(_compare(_node(old, old), _node(new, new), "", 0))


def _compare(old: _Node, new: _Node, place: str, depth: int) -> Iterator[_Finding]:
    if depth > _DEPTH_MAX:
        return  # a schema that contains itself: all its places were compared above
    if old.is_nullable != new.is_nullable:
        kind = Kind.TIGHTENED if old.is_nullable else Kind.LOOSENED
        yield _Finding(kind, place, "null is " + ("refused" if old.is_nullable else "allowed"))
    was, now = old.core.get("type"), new.core.get("type")
    if was != now:
        yield _Finding(Kind.RETYPED, place, f"{was} to {now}")
        return
    yield from _enum_findings(old, new, place)
    yield from _keyword_findings(old, new, place)
    if "default" in old.core and "default" in new.core:
        was, now = old.core["default"], new.core["default"]
        if was != now:
            yield _Finding(Kind.DEFAULT_CHANGED, place, f"{was!r} to {now!r}")
    yield from _property_findings(old, new, place, depth)
    if "items" in old.core and "items" in new.core:
        yield from _compare(
            old.at(old.core["items"]), new.at(new.core["items"]), f"{place}[]", depth + 1
        )
    elif "items" in old.core or "items" in new.core:
        kind = Kind.TIGHTENED if "items" in new.core else Kind.LOOSENED
        yield _Finding(kind, place, "items")


def _enum_findings(old: _Node, new: _Node, place: str) -> Iterator[_Finding]:
    was, now = old.core.get("enum"), new.core.get("enum")
    if was is None and now is None:
        return
    if was is None or now is None:
        kind = Kind.ENUM_NARROWED if was is None else Kind.ENUM_WIDENED
        yield _Finding(kind, place, "any value to a list" if was is None else "a list to any value")
        return
    if removed := [value for value in was if value not in now]:
        yield _Finding(Kind.ENUM_NARROWED, place, f"without {', '.join(map(str, removed))}")
    if added := [value for value in now if value not in was]:
        yield _Finding(Kind.ENUM_WIDENED, place, f"with {', '.join(map(str, added))}")


def _keyword_findings(old: _Node, new: _Node, place: str) -> Iterator[_Finding]:
    keywords = (old.core.keys() | new.core.keys()) - _ANNOTATIONS - _STRUCTURE
    for keyword in sorted(keywords):
        if keyword.startswith("x-"):
            continue
        was, now = old.core.get(keyword), new.core.get(keyword)
        if was == now or _shape(was, old.root) == _shape(now, new.root):
            continue
        detail = f"{keyword} {_short(was)} to {_short(now)}"
        yield from (_Finding(kind, place, detail) for kind in _direction(keyword, was, now))


def _direction(keyword: str, was: Any, now: Any) -> tuple[Kind, ...]:
    if was is None:
        return (Kind.TIGHTENED,)
    if now is None:
        return (Kind.LOOSENED,)
    if keyword in _LOWER_BOUNDS:
        return (Kind.TIGHTENED if now > was else Kind.LOOSENED,)
    if keyword in _UPPER_BOUNDS:
        return (Kind.TIGHTENED if now < was else Kind.LOOSENED,)
    # patterns, formats and alternatives are not ordered: something once good may be refused
    return (Kind.TIGHTENED,)


def _property_findings(old: _Node, new: _Node, place: str, depth: int) -> Iterator[_Finding]:
    before: Json = old.core.get("properties", {})
    after: Json = new.core.get("properties", {})
    required, required_now = (set(n.core.get("required", ())) for n in (old, new))
    added = [name for name in after if name not in before]
    for name in before:
        where = f"{place}.{name}".lstrip(".")
        if name not in after:
            yield _Finding(Kind.FIELD_REMOVED, where, _renamed(old, new, name, added))
            continue
        if name in required_now - required:
            yield _Finding(Kind.FIELD_REQUIRED, where)
        elif name in required - required_now:
            yield _Finding(Kind.LOOSENED, where, "may be missing now")
        yield from _compare(old.at(before[name]), new.at(after[name]), where, depth + 1)
    for name in added:
        kind = Kind.FIELD_REQUIRED if name in required_now else Kind.FIELD_ADDED
        yield _Finding(kind, f"{place}.{name}".lstrip("."), "new")


def _renamed(old: _Node, new: _Node, name: str, added: Sequence[str]) -> str:
    shape = _shape(old.core["properties"][name], old.root)
    for candidate in added:
        if _shape(new.core["properties"][candidate], new.root) == shape:
            return f"renamed to {candidate}?"
    return ""


def _node(schema: Json, root: Json) -> _Node:
    core = _resolved(schema, root)
    is_nullable = False
    if "anyOf" in core:
        branches = [_resolved(branch, root) for branch in core["anyOf"]]
        kept = [branch for branch in branches if branch.get("type") != "null"]
        is_nullable = len(kept) < len(branches)
        rest = {key: value for key, value in core.items() if key != "anyOf"}
        core = {**rest, **(kept[0] if len(kept) == 1 else {"anyOf": kept})}
    types = core.get("type")
    if isinstance(types, list):
        is_nullable = is_nullable or "null" in types
        others = sorted(name for name in types if name != "null")
        core = {**core, "type": others[0] if len(others) == 1 else others}
    if "const" in core:
        core = {**{key: core[key] for key in core if key != "const"}, "enum": [core["const"]]}
    return _Node(core, is_nullable, root)


def _resolved(schema: Json, root: Json) -> Json:
    for _ in range(_DEPTH_MAX):
        reference = schema.get("$ref")
        if reference is None:
            return schema
        target: Any = root
        for part in str(reference).removeprefix("#/").split("/"):
            target = target[part]
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    raise ContractError("a reference of a schema leads in a circle")


def _shape(value: Any, root: Json, depth: int = 0) -> Any:
    """Return what a schema demands, without names, texts and references."""
    if isinstance(value, list):
        return [_shape(item, root, depth + 1) for item in value]
    if not isinstance(value, dict) or depth > _DEPTH_MAX:
        return value
    resolved = _resolved(value, root)
    return {
        key: _shape(item, root, depth + 1)
        for key, item in resolved.items()
        if key not in _ANNOTATIONS
    }


def _short(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)[:80]


# ---------------------------------------------------------------------- reading the two contracts


def current(folder: Path = export.FOLDER) -> Contract:
    """Return the contract of this tree: exported from the models as they are, with its examples."""
    return Contract(
        asyncapi=export.asyncapi(),
        schemas={f"{t.name}.v{t.version}": export.json_schema(t) for t in REGISTRY},
        examples=_examples(
            {
                str(path.relative_to(folder)): path.read_text()
                for path in (folder / "examples").rglob("*.json")
            }
        ),
    )


def current_models() -> Models:
    """Return today's models by `<topic>.v<version>`."""
    return {f"{t.name}.v{t.version}": t.model for t in REGISTRY}


def committed(ref: str, folder: Path = export.FOLDER) -> Contract:
    """Return the contract that a commit holds.

    Raises:
        ContractError: the ref is unknown, or has no contract.
    """
    try:
        verify = ("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
        commit = _git(folder, *verify).strip()
    except ContractError as error:
        raise ContractError(f"There is no earlier contract at {ref} ({error}).") from error
    listed = _git(folder, "ls-tree", "-r", "-z", "--name-only", commit, ".").split("\0")
    texts = {
        path: _git(folder, "show", f"{commit}:./{path}")
        for path in listed
        if path == "asyncapi.yaml"
        or (path.startswith(("json/", "examples/")) and path.endswith(".json"))
    }
    if "asyncapi.yaml" not in texts:
        raise ContractError(f"{ref} has no schemas/asyncapi.yaml: it is older than the contract.")
    try:
        return Contract(
            asyncapi=yaml.safe_load(texts["asyncapi.yaml"]),
            schemas={
                Path(path).stem: json.loads(text)
                for path, text in texts.items()
                if path.startswith("json/")
            },
            examples=_examples(texts),
        )
    except (ValueError, yaml.YAMLError) as error:
        raise ContractError(f"the contract of {ref} is damaged: {error}") from error


def default_ref(folder: Path = export.FOLDER) -> str:
    """Return the newest tag of a released contract; HEAD's parent where there is none."""
    # git takes the last key as the first one: by date, and by number within a second
    by = ("--sort=-version:refname", "--sort=-creatordate")
    tags = _git(folder, "tag", "--list", TAGS, *by).split()
    return tags[0] if tags else "HEAD~1"


def _examples(texts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path, text in texts.items():
        match Path(path).parts:
            case ("examples", topic, version, name):
                found.setdefault(f"{topic}.{version}", {})[Path(name).stem] = json.loads(text)
            case _:
                pass  # an invalid example, or a schema
    return found


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, no shell, the ref is verified first
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - git is where PATH says
            check=True,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise ContractError("git is missing: an earlier contract cannot be read.") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["no reason given"])[0]
        raise ContractError(f"git {arguments[0]}: {said}") from None
    return done.stdout


def report(ref: str, changes: Sequence[Change]) -> str:
    """Return the result in words, one change per line, and the order to roll in."""
    n_said = f"{len(changes) or 'no'} change{'' if len(changes) == 1 else 's'}"
    lines = [f"contract of this tree against {ref}: {n_said}"]
    lines += [str(change) for change in changes]
    order = roll_order(changes)
    if order is None:
        lines.append("roll order: the changes contradict each other; release them one by one")
    elif order:
        lines.append(f"roll order: {', '.join(order)}")
    n_breaking = sum(change.is_breaking for change in changes)
    if n_breaking:
        lines.append(f"{n_breaking} breaking: that is a new version (new ce_type) and an ADR")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str], folder: Path = export.FOLDER) -> int:
    """Compare with the ref given or the default one; return the exit status."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        sys.stderr.write("usage: python -m schemas.compat [git-ref]\n")
        return 2
    try:
        ref = arguments[0] if arguments else default_ref(folder)
        changes = compare(committed(ref, folder), current(), current_models())
    except ContractError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(report(ref, changes))
    return 1 if any(change.is_breaking for change in changes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
