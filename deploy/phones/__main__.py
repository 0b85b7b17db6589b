"""`python -m deploy.phones`: an exchange where every number answers, for a stack that is up.

A number that ends in 486 is busy and one that ends in 408 never answers, to try those too.
"""

import argparse
import asyncio
import signal

from deploy.phones.exchange import PhoneExchange
from deploy.phones.phone import Mode, Phone

BUSY_SUFFIX = "486"
SILENT_SUFFIX = "408"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.phones", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5070, help="UDP port of the trunk")
    parser.add_argument("--answer-after", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--hang-up-after", type=float, default=None, metavar="SECONDS")
    return parser.parse_args()


def new_phone(number: str, arguments: argparse.Namespace) -> Phone:
    """Return the telephone of a number."""
    mode = Mode.ANSWER
    if number.endswith(BUSY_SUFFIX):
        mode = Mode.BUSY
    elif number.endswith(SILENT_SUFFIX):
        mode = Mode.NO_ANSWER
    return Phone(
        number=number,
        answer_after_s=arguments.answer_after,
        hang_up_after_s=arguments.hang_up_after,
        mode=mode,
    )


async def main() -> None:
    """Run until SIGINT or SIGTERM."""
    arguments = parse_arguments()
    exchange = PhoneExchange(
        arguments.host, arguments.port, new_phone=lambda number: new_phone(number, arguments)
    )
    await exchange.start()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopped.set)
    await stopped.wait()
    exchange.hang_up()
    await exchange.stop()


if __name__ == "__main__":
    asyncio.run(main())
