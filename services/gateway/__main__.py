"""`python -m services.gateway`: serve browsers."""

import sys

from services.chassis.service import main
from services.gateway.app import build
from services.gateway.declaration import DECLARATION
from services.gateway.settings import Settings

if __name__ == "__main__":
    sys.exit(main(DECLARATION, build, Settings))
