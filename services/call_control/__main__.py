"""`python -m services.call_control [migrate | find | statistics | kept]`."""

import sys

from services.call_control.app import build
from services.call_control.declaration import DECLARATION
from services.call_control.find import find, kept
from services.call_control.settings import Settings
from services.call_control.statistics import statistics
from services.chassis.service import main

sys.exit(
    main(DECLARATION, build, Settings, {"find": find, "statistics": statistics}, {"kept": kept})
)
