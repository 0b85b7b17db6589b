"""`python -m deploy.demo [--visitors n] [--folder path]`; see the package."""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from deploy.demo.errors import BusyError, DemoError
from deploy.demo.people import PEOPLE_MAX
from deploy.demo.report import Report
from deploy.demo.stack import REPORT
from deploy.demo.story import play
from deploy.demo.view import View
from deploy.local.errors import StackError
from deploy.local.layout import ROOT

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130
PLAIN_WIDTH = 120


def parse() -> argparse.Namespace:
    """Read the command line; `VISITORS` of the environment is the default."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument(
        "--visitors",
        type=_count,
        default=os.environ.get("VISITORS", "1"),
        help=f"how many at once, 1 to {PEOPLE_MAX}",
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "var" / "demo")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= PEOPLE_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {PEOPLE_MAX}.")
    return int(text)


async def perform(folder: Path, view: View, report: Report) -> None:
    """Play the story; Ctrl-C, SIGTERM and a closed terminal end it in order."""
    task = asyncio.current_task()
    assert task is not None
    # SIGINT too: whoever starts this in the background may have it ignored from birth
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    try:
        await play(folder, report.n_visitors, view, report)
    except BusyError:
        raise
    except (DemoError, StackError) as error:
        report.problems.insert(0, str(error))


def main() -> int:
    """Run the demo; the exit status says whether everything came true."""
    arguments = parse()
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    view = View(console)
    report = Report(n_visitors=arguments.visitors)
    is_interrupted = False
    try:
        with view.drawing():
            asyncio.run(perform(arguments.folder, view, report))
    except BusyError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        is_interrupted = True
        report.problems.insert(0, "Interrupted; everything was ended.")
    if report.is_played:
        report.judge()
    report.steps, report.wall_s = view.steps, view.wall_s
    code = conclude(arguments.folder, console, report)
    return EXIT_INTERRUPTED if is_interrupted else code


def conclude(folder: Path, console: Console, report: Report) -> int:
    """Write the report, say how it went, return the exit status."""
    path = folder / REPORT
    report.write(path)
    for problem in report.problems:
        # the sentence; a stack's error goes on with the last lines of a log, kept in the report
        sentence = problem.partition("\n")[0].rstrip(":")
        console.print(f"✗ {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
    if report.is_good:
        console.print(
            f"✓ Everything came true in {report.wall_s:.0f} s; nothing is left over. {path}",
            style="green", markup=False, highlight=False,
        )  # fmt: skip
    return EXIT_OK if report.is_good else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
