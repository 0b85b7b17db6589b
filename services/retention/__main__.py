"""`python -m services.retention [migrate | sweep | schedule | explain | compile | erase | …]`."""

import sys

from services.chassis.service import Command, main
from services.privacy.dated import RegisterError
from services.retention import command, compiler, evidence_command, explain, person_command
from services.retention.app import build
from services.retention.declaration import DECLARATION
from services.retention.schedule import ScheduleError
from services.retention.settings import Settings

if __name__ == "__main__":
    commands: dict[str, Command] = {
        "sweep": command.sweep,
        "schedule": command.print_schedule,
        "explain": explain.explain,
        "erase": person_command.erase,
        "restrict": person_command.restrict,
        "unrestrict": person_command.unrestrict,
        "hold": person_command.hold,
        "order": person_command.order,
        "verify": evidence_command.verify,
        "anchors": evidence_command.anchors,
        "anchor-keys": evidence_command.anchor_keys,
    }
    try:
        if sys.argv[1:2] == ["compile"]:
            # of the code alone: it needs no settings and no database
            sys.exit(compiler.main(sys.argv[2:]))
        sys.exit(main(DECLARATION, build, Settings, commands))
    except (RegisterError, ScheduleError) as error:
        sys.exit(f"retention: {error}")
