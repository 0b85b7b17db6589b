"""`python -m services.consent [migrate | verify | catalogue …]`."""

import sys

from services.chassis.service import Command, main
from services.consent import command
from services.consent.app import build
from services.consent.declaration import DECLARATION
from services.consent.settings import Settings

if __name__ == "__main__":
    commands: dict[str, Command] = {
        "verify": command.verify,
        "catalogue": command.catalogue,
    }
    sys.exit(main(DECLARATION, build, Settings, commands))
