"""A sweep as a person or a program reads it; made only of ids, days and counts (D4)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any

from services.privacy.chain import Finding
from services.retention import domain
from services.retention.domain import Standing, Sweep
from services.retention.evidence import Report


def describe(standing: Standing) -> dict[str, Any]:
    """Return an order with its receipts, as JSON data."""
    order = standing.order
    return {
        "order_id": str(order.order_id),
        "kind": order.kind,
        "action": order.action,
        "requirement": order.requirement,
        "before_day": order.before_day.isoformat(),
        "attempt": order.attempt,
        "as_of": order.as_of.isoformat(),
        "issued_at": order.issued_at.isoformat(),
        "is_complete": standing.completed_at is not None,
        "completed_at": standing.completed_at and standing.completed_at.isoformat(),
        "silent": list(domain.silent(order, standing.settled)),
        "waived": [
            {
                "holder": waived.holder,
                "reason": waived.reason,
                "proposed_by": waived.proposed_by,
                "confirmed_by": waived.confirmed_by,
                "confirmed_at": waived.confirmed_at.isoformat(),
            }
            for waived in standing.waived
        ],
        "receipts": [
            {
                "service": receipt.service,
                "done_at": receipt.done_at.isoformat(),
                "counts": [asdict(count) for count in receipt.counts],
            }
            for receipt in standing.receipts
        ],
    }


def describe_sweep(sweep: Sweep) -> dict[str, Any]:
    """Return a sweep with its orders, as JSON data."""
    return {
        "sweep_id": str(sweep.sweep_id),
        "as_of": sweep.as_of.isoformat(),
        "swept_at": sweep.swept_at.isoformat(),
        "schedule_version": sweep.schedule_version,
        "is_complete": domain.is_complete(sweep),
        "orders": [describe(standing) for standing in sweep.orders],
    }


def as_json(sweep: Sweep) -> str:
    """Return a sweep as one line of JSON."""
    return json.dumps(describe_sweep(sweep))


def as_table(sweep: Sweep) -> str:
    """Return a sweep as a table: what went, per kind, service and table."""
    rows: list[Sequence[str]] = [
        (
            "kind",
            "rule",
            "before",
            "service",
            "table",
            "partitions",
            "rows",
            "held",
            "restricted",
            "figures",
        )
    ]
    for standing in sweep.orders:
        order = standing.order
        head = order.kind, order.requirement, order.before_day.isoformat()
        answered = {receipt.service: receipt for receipt in standing.receipts}
        waived = {one.holder for one in standing.waived}
        for service in order.expected:
            receipt = answered.get(service)
            if receipt is None:
                word = "waived" if service in waived else "no answer yet"
                rows.append((*head, service, word, *[""] * 5))
                continue
            rows.extend((*head, service, *map(str, astuple(count))) for count in receipt.counts)
            if not receipt.counts:
                rows.append((*head, service, "holds none", *["0"] * 5))
    state = "complete" if domain.is_complete(sweep) else "NOT complete"
    return f"sweep {sweep.sweep_id} as of {sweep.as_of.isoformat()}: {state}\n{columns(rows)}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text in aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def as_document(report: Report) -> str:
    """Return a verification of the evidence as JSON."""
    return json.dumps(
        {
            "links": report.n_links,
            "contents": report.n_contents,
            "anchors": report.n_anchors,
            "kept_anchors": report.n_kept_anchors,
            "is_intact": not report.findings,
            "findings": [
                {"seq": found.seq, "fault": found.fault.value}
                | ({} if found.about is None else {"about": found.about})
                for found in report.findings
            ],
        }
    )


def as_text(report: Report) -> str:
    """Return a verification of the evidence as a page of text."""
    n_kept = report.n_kept_anchors
    kept = "" if n_kept is None else f" ({n_kept} kept elsewhere)"
    head = (
        f"{report.n_links} links, {report.n_contents} of them with their content, "
        f"{report.n_anchors} anchors{kept}, {report.n_signed} acts of staff signed, "
        f"{report.n_unsigned} from before that"
    )
    if not report.findings:
        return f"{head}: intact"
    return "\n".join([f"{head}: NOT INTACT", *map(_as_line, report.findings)])


def _as_line(found: Finding) -> str:
    place = f"link {found.seq}" if found.seq else "no link"
    about = "" if found.about is None else f" ({found.about})"
    return f"{place}: {found.fault.value}{about}"
