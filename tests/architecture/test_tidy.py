"""Rules of the house that no ruff rule says (style 3.10): one shared parse, one test per rule.

A rule that must be broken somewhere has its exception here, with the reason; there is no skip mark.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from schemas.topics import ALL_TOPICS

ROOT = Path(__file__).resolve().parents[2]
FUNCTION_LINES_MAX = 60
# built in two parts, so that this file does not contain what it looks for
LEFTOVERS = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|breakpoint\(\)|\bpdb\b")
SQL = re.compile(
    r"^\s*(?:SELECT\s.+|INSERT\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|DROP\s+\w+|CREATE\s+\w+"
    r"|ALTER\s+\w+|WITH\s+\w+\s+AS)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Source:
    """One parsed file."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Path from the root."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def module(self) -> str:
        """Dotted name."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def calls(self) -> Iterator[tuple[ast.Call, str]]:
        """Return each call with the last name of what is called."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Attribute):
                    yield node, node.func.attr
                elif isinstance(node.func, ast.Name):
                    yield node, node.func.id


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Parse all Python files of some folders, once."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    texts = [(path, path.read_text(encoding="utf-8")) for path in paths]
    return tuple(Source(path, text, ast.parse(text)) for path, text in texts)


def services() -> list[Source]:
    """The services without the chassis."""
    return [s for s in sources("services") if not s.name.startswith("services/chassis/")]


def product() -> tuple[Source, ...]:
    """What runs in production or starts it."""
    return sources("services", "schemas", "deploy")


def none(found: list[str]) -> None:
    """Fail with the places."""
    assert not found, "\n" + "\n".join(found)


def test_no_function_is_longer_than_a_screen() -> None:
    """Style A6: what does not fit on one screen is two things."""
    none(
        [
            f"{s.name}:{node.lineno} {node.name}"
            for s in product()
            for node in ast.walk(s.tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and _own_lines(node) > FUNCTION_LINES_MAX
        ]
    )


def _own_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    # a function inside (a route, a callback) is counted by itself
    inner = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lines = (node.end_lineno or 0) - node.lineno + 1
    return lines - sum((n.end_lineno or 0) - n.lineno + 1 for n in inner)


BANNED_OUTSIDE_THE_CHASSIS = {
    # acknowledgement, group and batch size are decided in one place (F2)
    "subscriber",
    "publish",
    "publisher",
    # application code never begins, commits or rolls back (ADR of polar, style 3.4 (2))
    "commit",
    "rollback",
    "AIOKafkaProducer",
    "KafkaBroker",
    "create_pool",
}


def test_services_leave_kafka_and_commits_to_the_chassis() -> None:
    """Style 3.4 (1), (2), (7): a handler produces and commits through its context only."""
    none(
        [
            f"{s.name}:{call.lineno} {name}("
            for s in services()
            for call, name in s.calls()
            if name in BANNED_OUTSIDE_THE_CHASSIS
        ]
    )


def test_rules_and_sql_open_no_transaction() -> None:
    """Style 3.2: the store works on one open connection, the handler on one open context."""
    none(
        [
            f"{s.name}:{call.lineno}"
            for s in services()
            if s.path.stem in ("domain", "store", "handlers", "executor")
            for call, name in s.calls()
            if name == "transaction"
        ]
    )


def test_no_connection_is_opened_in_a_handler() -> None:
    """Brief: `Context.connection` is for the privacy executor and the chassis only."""
    none(
        [
            f"{s.name}:{node.lineno}"
            for s in services()
            if not s.name.startswith("services/privacy/")
            for node in ast.walk(s.tree)
            if isinstance(node, ast.Attribute)
            and node.attr == "connection"
            and isinstance(node.value, ast.Name)
            and node.value.id in ("ctx", "context")
        ]
    )


def test_topics_are_named_in_the_registry_only() -> None:
    """Code says `topics.AD_VIEW`; a text that is a topic's name would escape a rename.

    Names without a dash (`consent`) are words of the language and cannot be told apart.
    """
    names = {topic.name for topic in ALL_TOPICS if "-" in topic.name}
    none(
        [
            f"{s.name}:{node.lineno} {node.value}"
            for s in product()
            if s.name != "schemas/topics.py"
            for node in ast.walk(s.tree)
            if isinstance(node, ast.Constant) and node.value in names
        ]
    )


def test_sql_is_never_put_together_from_values() -> None:
    """An f-string or % in SQL is one careless argument from an injection.

    Not `deploy`: it makes roles and searches catalogues by names that no client ever sends.
    """
    none(
        [
            f"{s.name}:{node.lineno}"
            for s in sources("services", "schemas")
            for node in ast.walk(s.tree)
            if (isinstance(node, ast.JoinedStr) and _is_sql(node) and _has_values(node))
            or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and _is_sql(node.left))
        ]
    )


def _is_sql(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and bool(SQL.match(node.value))
    )


def _has_values(node: ast.JoinedStr) -> bool:
    return any(
        isinstance(part, ast.FormattedValue)
        # a constant's name in capitals is text of ours
        and not (isinstance(part.value, ast.Name) and part.value.id.isupper())
        for part in node.values
    )


def test_nothing_is_left_over() -> None:
    """A note to do later is an issue, or it is never done."""
    paths = [
        p
        for folder in ("services", "schemas", "deploy", "tests")
        for p in (ROOT / folder).rglob("*")
    ]
    none(
        [
            f"{path.relative_to(ROOT)}:{number}"
            for path in paths
            if path.suffix in (".py", ".sql", ".sh", ".toml", ".ts", ".yaml")
            and "vendor" not in path.parts
            and "node_modules" not in path.parts
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if LEFTOVERS.search(line)
        ]
    )


def _imported() -> set[str]:
    names: set[str] = set()
    for source in sources("services", "schemas", "deploy", "tests"):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_file_is_used() -> None:
    """A file that nobody imports and nothing runs is dead."""
    imported = _imported()
    # run by name: `python -m …`, or by a path in the text of another program
    texts = [s.text for s in sources("deploy", "tests")] + [
        (ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "pyproject.toml")
    ]
    none(
        [
            s.name
            for s in sources("services", "schemas", "deploy", "tests/support")
            if s.path.stem not in ("__init__", "__main__", "conftest", "declaration")
            and s.module not in imported
            and not any(s.name in text or s.module in text for text in texts)
        ]
    )


def test_errors_are_swallowed_in_known_places_only() -> None:
    """Style 3.5: `except Exception` that does not raise again belongs to a frame, not to code."""
    allowed = {
        "services/chassis/consume.py",  # the consume frame
        "services/chassis/service.py",  # start, tasks, stop: the process's end
        "services/gateway/http/guard.py",  # the gateway's top middleware
        # sippy swallows what a callback raises, so its thread has to say it by itself
        "services/call_control/sip/backend.py",
        "services/call_control/sip/call.py",
    }
    found = []
    for source in sources("services"):
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler) or source.name in allowed:
                continue
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if broad and not raises:
                found.append(f"{source.name}:{node.lineno}")
    none(found)


@pytest.mark.timeout(60)
def test_layers_hold() -> None:
    """import-linter's contracts in pyproject.toml; also the same layout in every service (F9)."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
