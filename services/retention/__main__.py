"""`python -m services.retention [migrate | sweep --as-of <instant> | schedule]`."""

import sys

from services.chassis.service import Command, main
from services.retention import command
from services.retention.app import build
from services.retention.declaration import DECLARATION
from services.retention.schedule import ScheduleError
from services.retention.settings import Settings

if __name__ == "__main__":
    commands: dict[str, Command] = {"sweep": command.sweep, "schedule": command.print_schedule}
    try:
        sys.exit(main(DECLARATION, build, Settings, commands))
    except ScheduleError as error:
        sys.exit(f"retention: {error}")
