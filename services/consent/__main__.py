"""`python -m services.consent [migrate | verify | catalogue | disclose | transfers | …]`."""

import sys

from services.chassis.service import Command, main
from services.consent import command, disclosures, proofs
from services.consent.app import build
from services.consent.declaration import DECLARATION
from services.consent.settings import Settings

if __name__ == "__main__":
    commands: dict[str, Command] = {
        "disclose": disclosures.disclose,
        "transfers": disclosures.transfers,
        "accesses": command.accesses,
        "verify": command.verify,
        "anchors": command.anchors,
        "anchor-keys": command.anchor_keys,
        "receipt-keys": command.receipt_keys,
        "catalogue": command.catalogue,
        "import": proofs.import_old,
        "withdraw": proofs.withdraw,
        "proof": proofs.proof,
    }
    sys.exit(main(DECLARATION, build, Settings, commands, {"kept": command.kept}))
