"""`python -m deploy.dead_letters list|show|replay|discard --author NAME --why REASON`."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.access import DEAD_LETTERS
from deploy.dead_letters import box, commands
from deploy.dead_letters.commands import Desk, Selection
from deploy.dead_letters.journal import Action, Journal, Use
from deploy.dead_letters.letter import DeadLetterError
from deploy.local.control import State, kafka_login
from deploy.local.errors import StackError
from deploy.local.layout import ROOT, Layout
from services.chassis.clock import SystemClock
from services.chassis.kafka import KafkaLogin
from services.chassis.secret import Secret


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    result = argparse.ArgumentParser(prog="python -m deploy.dead_letters", description=__doc__)
    actions = result.add_subparsers(dest="action", required=True)
    for action, text in {
        Action.LIST: "what is open: reasons, origins, ages",
        Action.SHOW: "one letter: structure and types, never values",
        Action.REPLAY: "send letters to their topic again, once their cause is mended",
        Action.DISCARD: "give letters up; their topic deletes them by age",
    }.items():
        command = actions.add_parser(action.value, help=text)
        command.add_argument("--author", required=True, help="who you are: an account name")
        command.add_argument("--why", required=True, help="for the log; nothing personal")
        command.add_argument(
            "--folder", type=Path, default=ROOT / "var" / "main", help="of the stack; has the log"
        )
        command.add_argument(
            "--bootstrap",
            help="Kafka's host:port instead of the folder's stack; then KAFKA_PASSWORD or"
            " KAFKA_PASSWORD_FILE is needed, and KAFKA_CA_FILE where it speaks TLS",
        )
        command.add_argument("--username", default=DEAD_LETTERS, help="with --bootstrap")
        command.add_argument("--prefix", default="", help="before the topics' names")
        if action is Action.LIST:
            command.add_argument("--topic")
            command.add_argument("--limit", type=_count, default=50)
        if action is Action.SHOW:
            command.add_argument("letter", help="its id, as `list` prints it")
        if action in (Action.REPLAY, Action.DISCARD):
            which = command.add_mutually_exclusive_group(required=True)
            which.add_argument("letter", nargs="?", help="its id, as `list` prints it")
            which.add_argument("--reason", help="all open letters of this reason")
            command.add_argument("--topic", help="with --reason: of this topic only")
            command.add_argument("--at-most", type=_count, help="with --reason: the oldest ones")
    return result


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def login_from_environment(bootstrap: str, username: str) -> KafkaLogin:
    """Return the login to a Kafka that is no local stack's.

    Raises:
        DeadLetterError: the environment names no password.
    """
    password, path = (os.environ.get(f"KAFKA_PASSWORD{end}") for end in ("", "_FILE"))
    if not password and not path:
        raise DeadLetterError("Set KAFKA_PASSWORD_FILE or KAFKA_PASSWORD: Kafka wants a login.")
    ca_file = os.environ.get("KAFKA_CA_FILE")
    return KafkaLogin(
        bootstrap=bootstrap,
        username=username,
        password=Secret(password or "", Path(path) if path else None),
        ca_file=Path(ca_file) if ca_file else None,
    )


def login_of(folder: Path) -> KafkaLogin:
    """Return the login for dead letters of the stack that runs in a folder.

    Raises:
        DeadLetterError: none runs there.
    """
    state = State.of(Layout(folder))
    ports = [
        entry["port"]
        for name, entry in state.document.get("processes", {}).items()
        if name.startswith("kafka")
    ]
    if state.supervisor is None or not ports:
        raise DeadLetterError(
            f"No stack runs in {folder}: `make up` starts it, --bootstrap names another Kafka."
        )
    return kafka_login(Layout(folder), DEAD_LETTERS, ports)


async def carry_out(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    action = Action(arguments.action)
    use = Use(author=arguments.author, why=arguments.why, action=action)
    if arguments.bootstrap:
        login = login_from_environment(arguments.bootstrap, arguments.username)
    else:
        login = login_of(arguments.folder)
    async with box.opened(login, arguments.prefix) as letters:
        desk = Desk(
            box=letters,
            journal=Journal(arguments.folder, arguments.prefix),
            use=use,
            clock=SystemClock(),
            say=print,
        )
        match action:
            case Action.LIST:
                return await commands.list_open(desk, topic=arguments.topic, n_max=arguments.limit)
            case Action.SHOW:
                return await commands.show(desk, arguments.letter)
            case Action.REPLAY:
                return await commands.replay(desk, _selection(arguments))
            case Action.DISCARD:
                return await commands.discard(desk, _selection(arguments))


def _selection(arguments: argparse.Namespace) -> Selection:
    return Selection(
        letter_id=arguments.letter,
        reason=arguments.reason,
        topic=arguments.topic,
        at_most=arguments.at_most,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a sentence instead of a trace when it cannot be done."""
    # the client's own lines say nothing that our sentence does not
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    parsed = parser().parse_args(arguments)
    try:
        return asyncio.run(carry_out(parsed))
    except (DeadLetterError, StackError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
