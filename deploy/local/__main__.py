"""`python -m deploy.local up|down|status|logs|run|rotate|retire`."""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

from rich.console import Console

from deploy.local import control
from deploy.local.errors import StackError
from deploy.local.kafka import NODE_COUNTS
from deploy.local.layout import KEY_KINDS, ROOT
from deploy.local.rotate import retire, rotate
from services.chassis.declaration import SERVICES


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    result = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    commands = result.add_subparsers(dest="command", required=True)
    for name, text in {
        "up": "start the stack and leave it running",
        "down": "end what `up` started; the data stays",
        "status": "show what runs; exit status 1 when something is down",
        "logs": "show the logs and follow them",
        "run": "run the stack in the foreground",
        "rotate": "new passwords for a service, or a new signing key; nothing stops",
        "retire": "forget a kind's old signing keys",
    }.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--folder", type=Path, default=ROOT / "var" / "main")
        if name in {"up", "run"}:
            command.add_argument("--simulation", action="store_true")
            command.add_argument("--servers-only", action="store_true")
            command.add_argument("--kafka-nodes", type=int, choices=NODE_COUNTS, default=1)
            command.add_argument("--kafka-tls", action="store_true")
            command.add_argument("--standby", action="store_true")
        if name == "rotate":
            command.add_argument("what", choices=[*SERVICES, *KEY_KINDS])
        if name == "retire":
            command.add_argument("what", choices=KEY_KINDS)
        if name == "logs":
            command.add_argument("service", nargs="?")
            command.add_argument("--no-follow", action="store_true")
        if name == "run":
            command.add_argument("--patient", action="store_true")
            command.add_argument("--disposable", action="store_true")
            command.add_argument("--while-pid", type=int)
    return result


def carry_out(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    console = Console()
    folder: Path = arguments.folder
    match arguments.command:
        case "up":
            return control.up(folder, console, _passed_on(arguments))
        case "down":
            return control.down(folder, console)
        case "status":
            return control.status(folder, console)
        case "logs":
            return _logs(arguments, console)
        case "rotate" | "retire":
            act = rotate if arguments.command == "rotate" else retire
            asyncio.run(act(folder, arguments.what, console.print))
            return 0
        case _:
            options = control.RunOptions(
                simulation=arguments.simulation,
                kafka_nodes=arguments.kafka_nodes,
                kafka_tls=arguments.kafka_tls,
                standby=arguments.standby,
                patient=arguments.patient,
                servers_only=arguments.servers_only,
                disposable=arguments.disposable,
                while_pid=arguments.while_pid,
            )
            return control.run(folder, options)


def _logs(arguments: argparse.Namespace, console: Console) -> int:
    service, follow = arguments.service or None, not arguments.no_follow
    with contextlib.suppress(KeyboardInterrupt):
        return control.logs(arguments.folder, console, service, follow=follow)
    return 0


def _passed_on(arguments: argparse.Namespace) -> list[str]:
    """Return what `up` hands on to the `run` that it starts."""
    switches = ("simulation", "servers_only", "kafka_tls", "standby")
    given = [f"--{name.replace('_', '-')}" for name in switches if getattr(arguments, name)]
    return [*given, f"--kafka-nodes={arguments.kafka_nodes}"]


def main() -> int:
    """Run the command; a sentence instead of a trace when it cannot be done."""
    try:
        return carry_out(parser().parse_args())
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
