"""`python -m deploy.proof [--language de] [--folder path]`; see the package."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from deploy.demo.errors import BusyError, DemoError
from deploy.local.errors import StackError
from deploy.local.layout import ROOT, write_private, write_private_text
from deploy.proof.report import LANGUAGES, Proof
from deploy.proof.story import play


def main() -> int:
    """Prove it; 0 when it is proved, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m deploy.proof", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "var" / "proof")
    parser.add_argument("--language", choices=LANGUAGES, default="en")
    parser.add_argument("--json", action="store_true", help="print JSON, not the page")
    arguments = parser.parse_args()
    proof = Proof(say=lambda text: print(f"… {text}", file=sys.stderr, flush=True))
    try:
        asyncio.run(play(arguments.folder, proof))
    except BusyError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (DemoError, StackError) as error:
        proof.problems.append(str(error))
    stamp = f"{proof.made_at:%Y%m%dT%H%M%S}"
    document = proof.document()
    write_private(arguments.folder / f"{stamp}.json", document)
    for language in LANGUAGES:
        write_private_text(arguments.folder / f"{stamp}.{language}.txt", proof.page(language))
    print(json.dumps(document) if arguments.json else proof.page(arguments.language))
    sys.stderr.write(f"report: {arguments.folder / stamp}.json, .de.txt, .en.txt\n")
    return 0 if document["is_proved"] else 1


if __name__ == "__main__":
    sys.exit(main())
