"""Nothing in `services` talks to anybody outside but through the transfer gate (R-E2, K3).

A list of what may be imported, not of what may not: a client library nobody thought of is on no
list, and fails here. What can open a connection is allowed file by file, each with whom it reaches.
"""

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.test_tidy import Source, none, sources

HARMLESS = frozenset(
    {
        # ours
        "services", "schemas",
        # the standard library, as far as it cannot connect
        "__future__", "_thread", "argparse", "array", "calendar", "collections", "contextlib",
        "dataclasses", "datetime", "enum", "faulthandler", "functools", "hashlib", "hmac",
        "io", "ipaddress", "itertools", "json", "logging", "math", "os", "pathlib", "re",
        "secrets", "signal", "stat", "sys", "threading", "time", "traceback", "types", "typing",
        "uuid", "wave", "zoneinfo",
        # others: they compute, or answer who asked us
        "cryptography", "fastapi", "h11", "phonenumbers", "prometheus_client", "pydantic",
        "pydantic_core", "pydantic_settings",
        "starlette", "structlog", "typing_extensions", "uuid_utils", "uvicorn",
    }
)  # fmt: skip
"""May be imported by every module: none of it opens a connection."""

HARMLESS_PARTS = ("http.HTTPStatus", "urllib.parse.unquote", "urllib.parse.urlsplit")
"""Of packages whose other parts have clients."""

REACHES: dict[str, dict[str, str]] = {
    "httpx": {
        "services/gateway/app.py": "hands the client of reads.py its time limit",
        "services/ad_ledger/partner.py": "the ad partner: takes nothing but what the gate cleared",
        "services/gateway/reads.py": "our own services' HTTP, by settings: balance and call status",
    },
    "aiokafka": {
        "services/chassis/": "our Kafka",
        "services/retention/": "our Kafka: the ages of topics",
    },
    "faststream": {"services/chassis/": "our Kafka"},
    "asyncpg": {
        "services/": "our PostgreSQL: its URL is a setting of each service",
    },
    "pogo_core": {"services/chassis/db.py": "our PostgreSQL: migrations"},
    "sippy": {
        "services/call_control/sip/": "the carrier's SIP trunk: dials only the numbers that the"
        " gate cleared (transfers.py, switch.py; R-A6, R-E1)",
    },
    "ssl": {
        "services/chassis/kafka.py": "our Kafka: whom its certificates are checked against",
        "services/ad_ledger/partner.py": "the ad partner: whom its certificate is checked against",
    },
    "asyncio": {"services/": "the loop; what of it connects is in CONNECTING"},
    "importlib": {
        "services/chassis/declaration.py": "the card of a service, by its name",
        "services/privacy/register.py": "the classification of a service, by its name",
    },
}
"""Package -> file or folder that may import it -> whom it reaches, and why that is no transfer."""

CONNECTING = frozenset(
    {
        # asyncio's and its loop's
        "open_connection", "open_unix_connection", "create_connection", "create_unix_connection",
        "create_datagram_endpoint", "create_subprocess_exec", "create_subprocess_shell",
        "subprocess_exec", "subprocess_shell", "sock_connect", "sock_sendto", "sock_sendall",
        # the system's
        "system", "popen", "posix_spawn", "posix_spawnp", "execv", "execve", "execvp", "execvpe",
        "fork",
        # ways around an import
        "__import__", "import_module", "exec", "eval", "compile", "__builtins__",
    }
)  # fmt: skip
"""Names that connect, or start or load what does; wherever they stand in an expression."""

ALLOWED_NAMES = {
    ("services/chassis/declaration.py", "import_module"),
    ("services/privacy/register.py", "import_module"),
    ("services/retention/__main__.py", "compile"),
}
"""The modules that they load have names of ours, put together from `SERVICES`; the last is what a
person types."""


def may(package: str, name: str) -> bool:
    """Whether a file may import a package."""
    places = REACHES.get(package, {})
    return package in HARMLESS or any(
        name == place or (place.endswith("/") and name.startswith(place)) for place in places
    )


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each imported module with its line, also those of functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are banned"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each name and attribute with its line, and texts that are one (`getattr`)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and not _is_pattern(node):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias):
            yield node.lineno, node.name.rpartition(".")[2]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def _is_pattern(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "re" and node.attr == "compile"


def bypasses(source: Source) -> list[str]:
    """Return, in words, what in a file could reach somebody past the gate."""
    found = [
        f"{source.name}:{line} imports {module}"
        for line, module in imports(source.tree)
        if not (may(module.split(".")[0], source.name) or module in HARMLESS_PARTS)
        or module.startswith("logging.handlers")
    ]
    return found + [
        f"{source.name}:{line} uses {name}"
        for line, name in names(source.tree)
        if name in CONNECTING and (source.name, name) not in ALLOWED_NAMES
    ]


def test_nothing_reaches_outside_but_through_the_gate() -> None:
    """R-E2: every module of every service."""
    none([line for source in sources("services") for line in bypasses(source)])


def test_every_allowance_is_used() -> None:
    """An allowance that nobody needs is a door left open."""
    used = {
        (package, place)
        for source in sources("services")
        for _, module in imports(source.tree)
        for package in (module.split(".")[0],)
        for place in REACHES.get(package, {})
        if source.name == place or (place.endswith("/") and source.name.startswith(place))
    }
    granted = {(package, place) for package, places in REACHES.items() for place in places}
    assert granted - used == set()
    modules = {module for s in sources("services") for _, module in imports(s.tree)}
    assert modules >= set(HARMLESS_PARTS)
    assert {module.split(".")[0] for module in modules} >= HARMLESS
    named = {(s.name, name) for s in sources("services") for _, name in names(s.tree)}
    assert named >= ALLOWED_NAMES


@pytest.mark.parametrize(
    "line",
    [
        "import httpx",
        "import httpx as h",
        "from httpx import AsyncClient",
        "def send():\n    import requests",
        "import urllib.request",
        "from urllib import request",
        "import http.client",
        "from http import client",
        "from http.client import HTTPSConnection",
        "import socket",
        "import ssl",
        "import smtplib",
        "import aiohttp",
        "import websockets",
        "import paramiko",
        "import subprocess",
        "import ctypes",
        "import multiprocessing.connection",
        "import logging.handlers",
        "from logging.handlers import HTTPHandler",
        "import sippy",
        "import aiokafka",
        "import asyncio\nasyncio.open_connection('example.com', 443)",
        "import asyncio\nconnect = asyncio.open_connection",
        "from asyncio import open_connection",
        "import asyncio\nasyncio.get_running_loop().create_connection(None, 'example.com', 443)",
        "async def f(loop):\n    await loop.create_datagram_endpoint(None)",
        "import asyncio\nasyncio.create_subprocess_exec('curl')",
        "import os\nos.system('curl example.com')",
        "from os import system",
        "import os\nos.execvp('curl', [])",
        "import importlib\nimportlib.import_module('httpx')",
        "__import__('httpx')",
        "exec('import httpx')",
        "import asyncio\ngetattr(asyncio, 'open_connection')",
        "import urllib3",
        "import dns.resolver",
        "import socketserver",
        "import email\nimport smtplib as post",
        "from sippy.SipTransactionManager import SipTransactionManager",
        "def f(sock, loop): loop.sock_sendto(sock, b'x', ('example.com', 5060))",
    ],
)
def test_a_bypass_is_found(line: str) -> None:
    """R-E2: each way round the gate, in a file that has no allowance."""
    path = sources("services")[0].path.parent / "ad_ledger" / "bypass.py"
    assert bypasses(Source(path, line, ast.parse(line)))


def test_what_needs_no_gate_is_not_found() -> None:
    text = "import json\nimport re\nfrom http import HTTPStatus\nre.compile('a')\n"
    path = sources("services")[0].path.parent / "ad_ledger" / "harmless.py"
    assert bypasses(Source(path, text, ast.parse(text))) == []


SEAMS: dict[str, dict[str, str]] = {
    # data leave the platform: each takes only what the gate cleared
    "services/ad_ledger/partner.py": {"class": "PartnerClient", "method": "send"},
    "services/call_control/backend.py": {"class": "CallBackend", "method": "dial"},
    "services/call_control/sip/backend.py": {"class": "SipBackend", "method": "dial"},
}
"""Where data leave the platform, and what sends them."""

TAKES = {"UUID", "Cleared", "Sequence[Cleared]", "DialLimits"}
"""What a seam may take: what was cleared; the random id of one sending; how long a call lasts."""

INTERNAL = {"services/gateway/reads.py", "services/gateway/app.py"}
"""Speak HTTP to our own services, at addresses of the settings: they ask, and send nothing."""


def method_of(tree: ast.Module, owner: str, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """Return a class's method."""
    (found,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner)
    (method,) = (
        n
        for n in found.body
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and n.name == name
    )
    return method


def taken(source: Source, owner: str, name: str) -> list[str]:
    """Return, in words, what a seam takes besides what the gate cleared."""
    method = method_of(source.tree, owner, name)
    arguments = method.args
    every = [*arguments.posonlyargs, *arguments.args[1:], *arguments.kwonlyargs]
    more = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    kinds = [ast.unparse(a.annotation) if a.annotation else "" for a in every]
    found = [
        f"{source.name} sends {argument.arg}"
        for argument, kind in zip(every, kinds, strict=True)
        if kind not in TAKES
    ]
    found += [f"{source.name} sends {argument.arg}" for argument in more]
    if not any("Cleared" in kind for kind in kinds):
        found.append(f"{source.name}: {owner}.{name} takes nothing that was cleared")
    return found


def clients(source: Source, sender: str) -> list[str]:
    """Return, in words, where a sender's file could send what the gate has not cleared."""
    (owner,) = (n for n in source.tree.body if isinstance(n, ast.ClassDef) and n.name == sender)
    methods = [n for n in owner.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    known = [n for n in methods if n.name in {"__init__", "send", "close"}]
    allowed = {id(node) for method in known for node in ast.walk(method)}
    found = [
        f"{source.name}:{node.lineno} reaches the client outside of {sender}.send"
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.Name, ast.Attribute))
        and (node.id == "httpx" if isinstance(node, ast.Name) else node.attr == "_client")
        and id(node) not in allowed
    ]
    return found + taken(source, sender, "send")


def _source(text: str, name: str = "ad_ledger/partner.py") -> Source:
    path = sources("services")[0].path.parent / name
    return Source(path, text, ast.parse(text))


def test_a_seam_takes_only_what_the_gate_cleared() -> None:
    """R-E2, K3: nobody has a way to send, or to dial, what nobody cleared."""
    by_name = {source.name: source for source in sources("services")}
    none(
        [
            line
            for name, seam in SEAMS.items()
            for line in taken(by_name[name], seam["class"], seam["method"])
        ]
    )
    none(clients(by_name["services/ad_ledger/partner.py"], "PartnerClient"))


def test_every_client_is_a_seam_or_our_own() -> None:
    """R-E2: an allowance for a client says which of both; a new one fails until it does."""
    assert set(REACHES["httpx"]) <= set(SEAMS) | INTERNAL
    outside = [n for n, places in REACHES.items() for why in places.values() if "our" not in why]
    assert set(outside) <= {"httpx", "sippy", "ssl", "asyncio", "importlib"}
    assert set(REACHES["sippy"]) == {"services/call_control/sip/"}


def dials(source: Source) -> list[str]:
    """Return, in words, where a file makes a dialling order past the seam."""
    seam = source.name == "services/call_control/backend.py"
    allowed: set[int] = set()
    if seam:
        (made,) = (
            n
            for n in source.tree.body
            if isinstance(n, ast.AsyncFunctionDef) and n.name == "dial_of"
        )
        allowed = {id(node) for node in ast.walk(made)}
    return [
        f"{source.name}:{node.lineno} makes a dialling order"
        for node in ast.walk(source.tree)
        if (
            isinstance(node, ast.Call)
            and id(node) not in allowed
            and ast.unparse(node.func).rpartition(".")[2] in _MAKES_DIALS
        )
        or (isinstance(node, ast.Attribute) and ast.unparse(node).endswith("Dial.from_dict"))
    ]


_MAKES_DIALS = {"Dial", "command_from_dict"}


def test_numbers_are_dialled_through_the_seam_only() -> None:
    """R-E2, R-A6, K3: an order to dial is made of what the gate cleared, in one function."""
    none([line for source in sources("services") for line in dials(source)])
    (seam,) = (s for s in sources("services") if s.name == "services/call_control/backend.py")
    (made,) = (
        n for n in seam.tree.body if isinstance(n, ast.AsyncFunctionDef) and n.name == "dial_of"
    )
    kinds = {a.arg: ast.unparse(a.annotation) for a in made.args.args if a.annotation}
    assert kinds == {
        "call_id": "UUID", "numbers": "Cleared", "limits": "DialLimits", "now": "datetime",
    }  # fmt: skip
    sendable = next(
        ast.unparse(n.value)
        for n in seam.tree.body
        if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "Command" and n.value
    )
    assert "Dial" not in sendable.split(" | "), "what `send` takes holds no number"


@pytest.mark.parametrize(
    "line",
    [
        "backend.send(Dial(number_a='+4930123456'))",
        "from services.call_control import backend\nbackend.Dial(number_a='+4930123456')",
        "backend.send(command_from_dict({'type': 'Dial'}))",
        "make = Dial.from_dict",
    ],
)
def test_a_dialling_order_made_by_hand_is_found(line: str) -> None:
    """R-E2: each way to dial what nobody cleared."""
    assert dials(_source(line, "call_control/switch.py"))


def asks(source: Source) -> list[str]:
    """Return, in words, what a reader of our own services' HTTP could send, or ask of others."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in _SENDING:
            found.append(f"{source.name}:{node.lineno} uses {node.attr}")
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("._client.stream"):
            verb = ast.unparse(node.args[0])
            more = {keyword.arg for keyword in node.keywords} - {"params", "headers"}
            if verb != "'GET'" or more:
                found.append(
                    f"{source.name}:{node.lineno} sends {verb} with {sorted(map(str, more))}"
                )
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "://" in node.value:
            found.append(f"{source.name}:{node.lineno} has an address of its own")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in _BY_THEMSELVES:
            found.append(f"{source.name}:{node.lineno} sends by {ast.unparse(node)}")
    return found


_SENDING = frozenset({"post", "put", "patch", "delete", "request", "send", "build_request"})
_BY_THEMSELVES = frozenset(
    f"httpx.{name}" for name in ("get", "head", "options", "stream", "Client", "HTTPTransport")
)


def test_the_gateway_asks_our_own_services_and_sends_nothing() -> None:
    """R-E2: reads have no body, and go where the settings say."""
    by_name = {source.name: source for source in sources("services")}
    none(asks(by_name["services/gateway/reads.py"]))
    made = [
        f"{name}:{node.lineno}"
        for name in sorted(INTERNAL)
        for node in ast.walk(by_name[name].tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "httpx.AsyncClient"
    ]
    assert len(made) == 1, "one client, handed to the reader"
    app = by_name["services/gateway/app.py"]
    used = {ast.unparse(n) for n in ast.walk(app.tree) if isinstance(n, ast.Attribute)}
    assert {one for one in used if one.startswith("httpx.")} == {
        "httpx.AsyncClient", "httpx.Limits",
    }  # fmt: skip
    assert not {one for one in used if one.startswith("client.")}, "the reader alone uses it"


@pytest.mark.parametrize(
    "line",
    [
        "async def f(self, b): await self._client.post(self._consent_url, json=b)",
        "async def f(self, b): self._client.stream('POST', self._consent_url)",
        "async def f(self, b): self._client.stream('GET', self._consent_url, content=b)",
        "async def f(self, verb): self._client.stream(verb, self._consent_url)",
        "async def f(self, **more): self._client.stream('GET', self._consent_url, **more)",
        "async def f(self): self._client.stream('GET', 'https://example.com')",
        "async def f(self): self._client.stream('GET', f'https://{self.x}/')",
        "def f(): httpx.get(url)",
        "def f(): send = httpx.Client().request",
    ],
)
def test_a_read_that_sends_is_found(line: str) -> None:
    """R-E2: each way to make a reader a sender."""
    assert asks(_source(line, "gateway/reads.py"))


_CLEARED_ONLY = "class PartnerClient:\n    async def send(self, c: Sequence[Cleared]): pass\n"


@pytest.mark.parametrize(
    "line",
    [
        "class PartnerClient:\n    async def send(self, body: bytes): self._client.post(body)",
        f"{_CLEARED_ONLY}    async def raw(self, b): await self._client.post(b)",
        f"{_CLEARED_ONLY}def f(): httpx.post('https://example.com')",
        f"{_CLEARED_ONLY}def f(sender): sender._client.post('https://example.com')",
        "class PartnerClient:\n    async def send(self, c: Sequence[Cleared], *more: bytes): pass",
        "class PartnerClient:\n    async def send(self, c: Sequence[Cleared], **more): pass",
        "class PartnerClient:\n    async def send(self, batch_id: UUID): pass",
        "class PartnerClient:\n    async def send(self, c: Sequence[Cleared] | bytes): pass",
    ],
)
def test_a_sender_that_takes_more_is_found(line: str) -> None:
    """R-E2: each way to send what was not cleared."""
    assert clients(_source(line), "PartnerClient")
