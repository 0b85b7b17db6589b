"""`python -m services.retention [migrate | sweep | schedule | erase | restrict | hold | …]`."""

import sys

from services.chassis.service import Command, main
from services.retention import command, person_command
from services.retention.app import build
from services.retention.declaration import DECLARATION
from services.retention.schedule import ScheduleError
from services.retention.settings import Settings

if __name__ == "__main__":
    commands: dict[str, Command] = {
        "sweep": command.sweep,
        "schedule": command.print_schedule,
        "erase": person_command.erase,
        "restrict": person_command.restrict,
        "unrestrict": person_command.unrestrict,
        "hold": person_command.hold,
    }
    try:
        sys.exit(main(DECLARATION, build, Settings, commands))
    except ScheduleError as error:
        sys.exit(f"retention: {error}")
