"""`python -m services.ad_ledger [migrate | find | accesses | statistics | kept]`."""

import sys

from services.ad_ledger.app import build
from services.ad_ledger.declaration import DECLARATION
from services.ad_ledger.find import accesses, find, kept
from services.ad_ledger.settings import Settings
from services.ad_ledger.statistics import statistics
from services.chassis.service import Command, main

commands: dict[str, Command] = {"find": find, "accesses": accesses, "statistics": statistics}
sys.exit(main(DECLARATION, build, Settings, commands, {"kept": kept}))
