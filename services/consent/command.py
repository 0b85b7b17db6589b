"""`python -m services.consent verify`, `anchors`, `catalogue`, …: what a person types."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.chassis.clock import SystemClock
from services.chassis.command import transaction
from services.consent import catalogues, chain_store
from services.consent.catalogues import CatalogueError
from services.consent.chain_store import Part
from services.consent.classification import TABLES
from services.consent.declaration import DECLARATION
from services.consent.settings import Settings
from services.consent.store import Store
from services.consent.transfer_store import ConsentStore
from services.privacy import anchors as anchors_of
from services.privacy import chain
from services.privacy.accesses import accesses as read_accesses
from services.privacy.acts import Act
from services.privacy.acts import judge as judge_acts
from services.privacy.chain import Anchor, Entry, Fault, Finding, SigningKeys, Taking, VerifyKeys
from services.privacy.identify import register_of
from services.privacy.kept import kept as read_kept
from services.privacy.staff import StaffError, StaffRegister

EXIT_REFUSED = 2
EXIT_NOT_INTACT = 3


async def verify(arguments: Sequence[str]) -> int:
    """Verify all chains of records and print what was found; 0: intact, 2: refused, 3: not."""
    parser = argparse.ArgumentParser(prog="python -m services.consent verify")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--anchors", type=Path, help="anchors kept elsewhere: JSON lines")
    asked = parser.parse_args(arguments)
    try:
        names = {chain_store.chain_name(part) for part in chain_store.ALL}
        kept_anchors = None if asked.anchors is None else anchors_of.read(asked.anchors, names)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"consent: refused: {error}\n")
        return EXIT_REFUSED
    settings = Settings.load()
    try:
        register = register_of(DECLARATION.name)
    except StaffError as error:
        sys.stderr.write(f"consent: refused: {error}\n")
        return EXIT_REFUSED
    keys = VerifyKeys(_anchor_keys(settings).public())
    results = []
    for part in chain_store.ALL:
        async with transaction(
            settings.secret("database_url"), DECLARATION.name, Store, SystemClock()
        ) as ctx:
            await ctx.store.reads_as_of_one_instant()
            takings = await ctx.store.chain_part(chain_store.TAKINGS)
            is_of_takings = part == chain_store.TAKINGS
            found = takings if is_of_takings else await ctx.store.chain_part(part)
        results.append(judge(found, keys, proven(takings, keys), kept_anchors))
    async with transaction(
        settings.secret("database_url"), DECLARATION.name, ConsentStore, SystemClock()
    ) as ctx:
        results.append(judge_disclosures(await ctx.store.transfers.disclosure_acts(), register))
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if asked.json else _as_table(results))
    return 0 if all(result["intact"] for result in results) else EXIT_NOT_INTACT


async def anchors(arguments: Sequence[str]) -> int:
    """Print all anchors as JSON lines, to be kept where nobody who owns the database can write."""
    argparse.ArgumentParser(prog="python -m services.consent anchors").parse_args(arguments)
    settings = Settings.load()
    async with transaction(
        settings.secret("database_url"), DECLARATION.name, Store, SystemClock()
    ) as ctx:
        found = await ctx.store.anchors()
    sys.stdout.write(anchors_of.as_lines(found))
    return 0


async def receipt_keys(arguments: Sequence[str]) -> int:
    """Print the public keys by which the receipts of visitors verify."""
    argparse.ArgumentParser(prog="python -m services.consent receipt-keys").parse_args(arguments)
    text = Settings.load().secret("proof_keys").read()
    sys.stdout.write(anchors_of.keys_as_text(SigningKeys.from_json(text)))
    return 0


async def anchor_keys(arguments: Sequence[str]) -> int:
    """Print the public keys by which anchors and takings verify, for who keeps anchors."""
    argparse.ArgumentParser(prog="python -m services.consent anchor-keys").parse_args(arguments)
    sys.stdout.write(anchors_of.keys_as_text(_anchor_keys(Settings.load())))
    return 0


def _anchor_keys(settings: Settings) -> SigningKeys:
    return SigningKeys.from_json(settings.secret("anchor_keys").read())


def proven(part: Part, keys: VerifyKeys) -> list[Taking]:
    """Return what orders took, as far as it is in the chain of takings and signed."""
    by_seq = {entry.seq: entry for entry in part.entries}
    return [
        one
        for one in part.takings
        if one.is_signed(keys)
        and one.seq in by_seq
        and chain.is_content_of(by_seq[one.seq], *part.contents[one.seq])
    ]


def judge(
    part: Part,
    keys: VerifyKeys,
    takings: Sequence[Taking] = (),
    kept_anchors: Sequence[Anchor] | None = None,
) -> dict[str, Any]:
    """Return what is to be said of one chain, in JSON's types.

    Args:
        takings: proven ones; a content that is gone by none of them is a finding.
        kept_anchors: those kept elsewhere, of any chain; None = none were given.
    """
    kept_of_it = [one for one in kept_anchors or () if one.chain == part.name]
    all_anchors = dict.fromkeys([*part.anchors, *kept_of_it])
    by_seq = {entry.seq: entry for entry in part.entries}
    gone = by_seq.keys() - part.contents.keys()
    findings = [
        *chain.verify(part.entries),
        *chain.verify_anchors(by_seq, all_anchors, keys),
        *chain.against_kept(part.anchors, kept_of_it, keys),
        *_against_head(part),
        *_against_contents(by_seq, part.contents),
        *(Finding(seq=seq, fault=Fault.FORGED) for seq in part.strays),
        *(
            Finding(seq=one.seq, fault=Fault.TAKING_FORGED)
            for one in part.takings
            if not one.is_signed(keys)
        ),
        *chain.against_takings(part.name, part.contents, gone, takings),
    ]
    return {
        "chain": part.name,
        "intact": not findings,
        "entries": len(part.entries),
        # their period ended: what they said is gone, the chain is whole
        "without_record": len(gone),
        "anchors": len(part.anchors),
        **({} if kept_anchors is None else {"kept_anchors": len(kept_of_it)}),
        "findings": [_finding(finding) for finding in findings],
    }


def judge_disclosures(acts: Sequence[Act], register: StaffRegister) -> dict[str, Any]:
    """Return what is to be said of disclosures to authorities: no chain, but signed (R-C4).

    A finding's number is the statement's place in time; it says which disclosure, too.
    """
    judged = judge_acts(acts, register)
    return {
        "chain": "consent/disclosures",
        "intact": not judged.findings,
        "entries": len(acts),
        "without_record": 0,
        "anchors": 0,
        "signed": judged.n_signed,
        "from_before_signatures": judged.n_unsigned,
        "findings": [
            _finding(one) | {"disclosure_id": str(acts[one.seq - 1].pair)}
            for one in judged.findings
        ],
    }


def _against_head(part: Part) -> list[Finding]:
    """Compare the chain's end with the head; an empty chain has a head of number 0."""
    last = part.entries[-1].seq if part.entries else 0
    if last < part.head.seq:
        return [Finding(seq=part.head.seq, fault=Fault.CUT)]
    if last > part.head.seq:
        return [Finding(seq=part.head.seq + 1, fault=Fault.CHANGED)]
    differs = part.entries and part.entries[-1] != part.head
    return [Finding(seq=last, fault=Fault.CHANGED)] if differs else []


def _against_contents(
    by_seq: Mapping[int, Entry], contents: Mapping[int, tuple[bytes, bytes]]
) -> Iterator[Finding]:
    """Compare the records that are left with their links; one without a link was put in."""
    for seq, (salt, content) in sorted(contents.items()):
        if seq not in by_seq:
            yield Finding(seq=seq, fault=Fault.MISSING)
        elif not chain.is_content_of(by_seq[seq], salt, content):
            yield Finding(seq=seq, fault=Fault.CONTENT_CHANGED)


def _finding(finding: Finding) -> dict[str, Any]:
    return {"seq": finding.seq, "fault": finding.fault.value}


def _kept(result: Mapping[str, Any]) -> str:
    return f" ({result['kept_anchors']} kept elsewhere)" if "kept_anchors" in result else ""


def _as_table(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        said = ", ".join(f"{f['fault']} at {f['seq']}" for f in result["findings"]) or "intact"
        lines.append(
            f"{result['chain']}  {result['entries']} entries, {result['without_record']} without"
            f" record, {result['anchors']} anchors{_kept(result)}: {said}"
        )
    return "\n".join(lines) + "\n"


async def accesses(arguments: Sequence[str]) -> int:
    """Print who of the staff looked or acted; see `services/privacy/accesses.py`."""
    url = Settings.load().secret("database_url")
    return await read_accesses(arguments, service=DECLARATION.name, url=url)


async def kept(arguments: Sequence[str]) -> int:
    """Print what a hold or restriction keeps; see `services/privacy/kept.py`."""
    kinds = {table.kind for table in TABLES}
    return await read_kept(arguments, service=DECLARATION.name, kinds=kinds)


async def catalogue(arguments: Sequence[str]) -> int:
    """Validate, compare or publish catalogues; 0: done, 2: refused, with the reason.

    `diff` ends with 0 whatever it finds: what it prints is the answer.
    """
    parser = argparse.ArgumentParser(prog="python -m services.consent catalogue")
    acts = parser.add_subparsers(dest="act", required=True)
    acts.add_parser("validate", help="read every version, published or not")
    compare = acts.add_parser("diff", help="what a version changes; whether it asks again")
    compare.add_argument("old")
    compare.add_argument("new")
    acts.add_parser("publish", help="fix a version for ever").add_argument("version")
    found = parser.parse_args(arguments)
    try:
        sys.stdout.write(_on_catalogues(found))
    except CatalogueError as error:
        sys.stderr.write(f"consent: catalogue: {error}\n")
        return EXIT_REFUSED
    return 0


def _on_catalogues(found: argparse.Namespace) -> str:
    folder = catalogues.FOLDER
    if found.act == "publish":
        hashes = catalogues.fix(found.version)
        return "".join(f"{found.version} {name} {text}\n" for name, text in hashes.items())
    if found.act == "diff":
        old, new = (catalogues.read(folder / f"{v}.json") for v in (found.old, found.new))
        said = catalogues.diff(old, new)
        lines = [
            *(f"widens  {name}" for name in said.widens),
            *(f"other   {n}" for n in said.other),
        ]
        return "\n".join([*lines, "asks again" if said.asks_again else "does not ask again", ""])
    known = catalogues.load()
    lines = []
    for path in sorted(folder.glob("*.json")):
        if path.name != catalogues.PUBLISHED:
            each = catalogues.read(path)
            state = "published" if each.version in known.by_version else "draft"
            lines.append(f"{each.version}  {len(each.entries)} entries  {state}\n")
    return "".join(lines)
