"""`python -m services.consent [migrate]`."""

import sys

from services.chassis.service import main
from services.consent.app import build
from services.consent.declaration import DECLARATION
from services.consent.settings import Settings

if __name__ == "__main__":
    sys.exit(main(DECLARATION, build, Settings))
