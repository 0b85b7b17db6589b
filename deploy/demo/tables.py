"""The printed results: evidence, deletion, what stays, invariants. Formats, nothing else."""

import statistics
from collections.abc import Sequence
from datetime import datetime

from rich.table import Table

from deploy.demo.deletion import Deleted, Standing
from deploy.demo.evidence import Chain
from deploy.demo.invariants import Answer
from deploy.demo.search import PLACES, Find

FIGURES = ("credited_ms", "reserved_ms", "talk_ms", "charged_ms", "overrun_ms")
EACH_VISITOR_MAX = 10


def chain(found: Chain) -> Table:
    """Return the evidence of one visit, link by link, each with the id that joins the next."""
    table = Table(title=f"Evidence of visitor {found.visit.person.number}", title_justify="left")
    for column in ("at (UTC)", "link", "what", "ms", "joined by"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    ticket, call = _short(found.visit.ticket_id), _short(found.visit.call_id)
    for event in found.events:
        table.add_row(
            _time(event["viewed_at"]), "ad event", event["kind"], str(event["position_ms"]),
            f"ticket {ticket}",
        )  # fmt: skip
    operations = {"grant": f"ticket {ticket}"}
    for posting in found.postings:
        source = f" for {posting['kind']}" if posting["kind"] else ""
        table.add_row(
            _time(posting["posted_at"]), f"posting {posting['posting_id']}",
            f"{posting['debit_account']} → {posting['credit_account']}{source}",
            str(posting["amount_ms"]),
            operations.get(posting["operation"], f"ticket {ticket}, call {call}"),
        )  # fmt: skip
    reservation = found.reservation
    table.add_row(
        _time(reservation["requested_at"]), "reservation", "as much as there was",
        str(reservation["reserved_ms"]), f"call {call}",
    )  # fmt: skip
    for row, leg in zip(found.leg_rows, found.legs, strict=True):
        table.add_row(
            _time(row["dialled_at"]), f"leg {leg.leg}",
            f"rang {leg.ring_ms} ms, {leg.sip_status}; RTP {leg.rtp_sent} out, "
            f"{leg.rtp_received} in, hears {leg.heard_hz} Hz",
            str(leg.duration_ms), f"call {call}",
        )  # fmt: skip
    cdr = found.cdr
    table.add_row(
        _time(cdr["connected_at"]), "CDR", f"talk; ended by {cdr['ended_by']}: {cdr['reason']},"
        f" overrun {cdr['overrun_ms']} ms", str(cdr["talk_ms"]), f"call {call}",
    )  # fmt: skip
    table.add_row(
        _time(reservation["ended_at"]), "settlement", reservation["state"],
        str(reservation["spent_ms"]), f"call {call}",
    )  # fmt: skip
    return table


def visitors(chains: Sequence[Chain]) -> Table:
    """Return one row a visitor, or the spread where there are many."""
    table = Table(title=f"{len(chains)} visitors, milliseconds", title_justify="left")
    table.add_column("visitor")
    for name in FIGURES:
        table.add_column(name.removesuffix("_ms"), justify="right")
    figures = {name: [getattr(found, name) for found in chains] for name in FIGURES}
    if len(chains) <= EACH_VISITOR_MAX:
        for number, row in enumerate(zip(*figures.values(), strict=True)):
            person = chains[number].visit.person
            table.add_row(str(person.number), *map(str, row))
    else:
        table.add_row("least", *(str(min(values)) for values in figures.values()))
        table.add_row("median", *(f"{statistics.median(v):.0f}" for v in figures.values()))
        table.add_row("most", *(str(max(values)) for values in figures.values()))
    table.add_section()
    table.add_row("all", *(str(sum(values)) for values in figures.values()))
    return table


def deleted(lines: Sequence[Deleted]) -> Table:
    """Return the receipts, a line each for what held rows."""
    table = Table(title="Eight days later: receipts of the deletion", title_justify="left")
    for column in ("kind", "rule", "before", "service", "table or topic", "partitions", "rows"):
        table.add_column(column, justify="right" if column in {"partitions", "rows"} else "left")
    for line in lines:
        if line.n_rows:
            table.add_row(
                line.kind, line.rule, line.before_day, line.service, line.table,
                str(line.n_partitions), str(line.n_rows),
            )  # fmt: skip
    n_empty = sum(not line.n_rows for line in lines)
    table.caption = f"and {n_empty} receipts for tables and topics that held nothing"
    return table


def finds(before: Sequence[Find], after: Sequence[Find]) -> Table:
    """Return how often each thing was found before and after, by the kind of place."""
    table = Table(title="The same search, before and after", title_justify="left")
    table.add_column("what is looked for")
    for place in PLACES:
        table.add_column(f"in {place}", justify="right")
    for what in sorted({find.what for find in (*before, *after)}):
        cells = []
        for place in PLACES:
            counts = [
                sum(f.n for f in found if _is_at(f, what, place)) for found in (before, after)
            ]
            cells.append(f"{counts[0]} → {counts[1]}")
        table.add_row(what, *cells)
    return table


def _is_at(find: Find, what: str, place: str) -> bool:
    return find.what == what and find.place.split()[0] == place


def standing(found: Sequence[Standing]) -> Table:
    """Return what stays, each with its rule."""
    table = Table(title="What stays, and by which rule", title_justify="left")
    for column in ("rule", "tables", "rows"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for rule in dict.fromkeys(line.rule for line in found):
        lines = [line for line in found if line.rule == rule]
        names = ", ".join(f"{line.service}.{line.table}" for line in lines)
        rows = str(sum(line.n_rows for line in lines))
        table.add_row(rule or "[bold red]none[/]", names, rows)
    return table


def invariants(answers: Sequence[Answer]) -> Table:
    """Return every invariant with its violations, by SQL and as exported."""
    table = Table(title="Invariants: rows that break them", title_justify="left")
    for column in ("service", "invariant", "by SQL", "/metrics"):
        table.add_column(column)
    for answer in answers:
        table.add_row(
            answer.service, answer.name, _count(answer.by_sql), _count(answer.by_metric),
            style="" if answer.holds else "bold red",
        )  # fmt: skip
    return table


def _count(n: int | None) -> str:
    return "-" if n is None else str(n)


def _time(at: datetime | None) -> str:
    return "" if at is None else f"{at:%H:%M:%S.%f}"[:-3]


def _short(server_id: str) -> str:
    """Return the end of an id, which is random; its beginning is the time."""
    return f"…{server_id[-8:]}"
