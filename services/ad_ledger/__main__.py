"""`python -m services.ad_ledger [migrate | find | statistics | kept]`."""

import sys

from services.ad_ledger.app import build
from services.ad_ledger.declaration import DECLARATION
from services.ad_ledger.find import find, kept
from services.ad_ledger.settings import Settings
from services.ad_ledger.statistics import statistics
from services.chassis.service import main

sys.exit(
    main(DECLARATION, build, Settings, {"find": find, "statistics": statistics}, {"kept": kept})
)
