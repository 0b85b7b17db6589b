"""`python -m services.call_control [migrate | find | statistics | accesses | kept]`."""

import sys

from services.call_control.app import build
from services.call_control.declaration import DECLARATION
from services.call_control.find import accesses, find, kept
from services.call_control.settings import Settings
from services.call_control.statistics import statistics
from services.chassis.service import Command, main

commands: dict[str, Command] = {"find": find, "accesses": accesses, "statistics": statistics}
sys.exit(main(DECLARATION, build, Settings, commands, {"kept": kept}))
