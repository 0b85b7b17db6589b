"""Goal: the whole main job as a user sees it, in one command, and what it says about itself.

Method: run the demo as a subprocess with two visitors on a stack of its own, then check the
figures of its report against one another; nothing is asked that the report could only echo.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.local.layout import ROOT
from deploy.phones.phone import TONE_OF_CALLED_HZ, TONE_OF_CALLER_HZ

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

N_VISITORS = 2
AD_MS = 15_000


def command(folder: Path, n_visitors: int = N_VISITORS) -> list[str]:
    demo = [sys.executable, "-m", "deploy.demo"]
    return [*demo, "--folder", str(folder), "--visitors", str(n_visitors)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def played(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder), cwd=ROOT, capture_output=True, text=True, check=False, timeout=590
    )


@pytest.fixture(scope="module")
def report(played: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Any]:
    assert played.returncode == 0, played.stdout[-4000:] + played.stderr[-2000:]
    found = json.loads((folder / "report.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def test_everything_came_true_and_is_said_in_plain_lines(
    played: subprocess.CompletedProcess[str], report: dict[str, Any]
) -> None:
    """No terminal, no live picture; the exit status and the report agree."""
    assert report["problems"] == []
    assert report["is_good"] is True
    assert "\x1b[" not in played.stdout
    assert "nothing is left over" in played.stdout


def test_each_visitor_talks_for_what_the_ad_earned(report: dict[str, Any]) -> None:
    """R-A3, R-A5, C2: credit = reservation; the charge is the talk, at most what was reserved."""
    assert len(report["per_visitor"]) == N_VISITORS
    for figures in report["per_visitor"]:
        assert figures["credited_ms"] == AD_MS
        assert figures["reserved_ms"] == figures["credited_ms"]
        assert figures["charged_ms"] == min(figures["talk_ms"], figures["reserved_ms"])
        assert figures["overrun_ms"] == max(0, figures["talk_ms"] - figures["reserved_ms"])
        # the call is cut when the credit ends, neither early nor late
        assert abs(figures["talk_ms"] - figures["reserved_ms"]) < 1000


def test_the_totals_are_the_sums_of_the_visitors(report: dict[str, Any]) -> None:
    """A total that is no sum would hide a visitor."""
    for name in ("credited_ms", "reserved_ms", "talk_ms", "charged_ms", "overrun_ms"):
        assert report[name] == sum(figures[name] for figures in report["per_visitor"])


def test_both_telephones_heard_each_other_for_the_whole_talk(report: dict[str, Any]) -> None:
    """R-A5: real tones both ways; B is never dialled before A has answered."""
    assert len(report["legs"]) == 2 * N_VISITORS
    heard_hz = {"a": TONE_OF_CALLED_HZ, "b": TONE_OF_CALLER_HZ}
    talk_ms = {figures["visitor"]: figures["talk_ms"] for figures in report["per_visitor"]}
    for leg in report["legs"]:
        assert leg["sip_status"] == 200
        assert leg["heard_hz"] == heard_hz[leg["leg"]]
        assert leg["ring_ms"] > 0
        # fifty packets a second, and a tenth of them may get lost on a busy machine
        assert leg["rtp_received"] > 0.9 * talk_ms[leg["visitor"]] / 20
    by_leg = {(leg["visitor"], leg["leg"]): leg["duration_ms"] for leg in report["legs"]}
    for visitor in talk_ms:
        assert by_leg[visitor, "a"] > by_leg[visitor, "b"]


def test_what_was_collected_is_deleted_and_counted(report: dict[str, Any]) -> None:
    """R-A1, R-A2, R-D4, R-D5, R-D9: the receipts count just the rows that there were."""
    rows = {table: n for kind in report["deleted"].values() for table, n in kind["tables"].items()}
    # page hit, start, three quartiles, complete
    assert rows["ad_ledger.ad_view"] == rows["kafka.ad_view"] == 6 * N_VISITORS
    assert rows["ad_ledger.ad_view_address"] == rows["call_control.call_address"] == N_VISITORS
    assert rows["ad_ledger.reservation"] == rows["call_control.call"] == N_VISITORS
    assert rows["call_control.call_leg"] == len(report["legs"])
    assert rows["consent.consent_subject"] == N_VISITORS
    for kind in report["deleted"].values():
        assert kind["n_rows"] == sum(kind["tables"].values())


def test_nothing_is_left_over_where_it_had_been_found_before(report: dict[str, Any]) -> None:
    """R-D4, R-D5, D1: the search found it all before the deletion, and nothing of it after."""
    assert report["left_over"] == []
    found = {(find["place"].split()[0], find["what"]) for find in report["found_before"]}
    for what in ("visitor id", "call id", "callback number", "destination number", "address"):
        assert {("tables", what), ("topics", what), ("files", what)} <= found
    assert not [place for place, _ in found if place in {"logs", "metrics"}]


def test_what_stays_has_a_rule(report: dict[str, Any]) -> None:
    """R-D9, R-D10: orders, receipts, sums and proofs outlive the rows, each by name."""
    assert all(line["rule"] for line in report["standing"])
    stays = {f"{line['service']}.{line['table']}" for line in report["standing"]}
    assert {"retention.retention_receipt", "ad_ledger.platform_account"} <= stays
    assert "consent.consent_record" in stays
    assert "consent.consent_subject" not in stays


def test_every_invariant_holds_in_sql_and_as_exported(report: dict[str, Any]) -> None:
    """L1 to L6, C1 to C5, D1, D3."""
    invariants = report["invariants"]
    for number in range(1, 7):
        assert any(f"ad_ledger.l{number}_" in name for name in invariants)
    for number in range(1, 6):
        assert any(f"call_control.c{number}_" in name for name in invariants)
    assert all(found["by_metric"] == 0 for found in invariants.values())
    assert all(not found["by_sql"] for found in invariants.values())


def test_an_interrupted_demo_ends_everything_it_started(tmp_path: Path) -> None:
    """Ctrl-C midway: no process is left, the exit status says so, the report is not good."""
    demo = subprocess.Popen(
        command(tmp_path, 1), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "watches" in line:
            break
    pids = {
        process["pid"]
        for process in json.loads((tmp_path / "stack" / "state.json").read_text("utf-8"))[
            "processes"
        ].values()
    }
    assert len(pids) > 2
    demo.send_signal(signal.SIGINT)
    rest = demo.stdout.read()
    demo.stdout.close()
    assert demo.wait(60) == 130, rest
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["is_good"] is False


@pytest.mark.parametrize("visitors", ["0", "100", "many"])
def test_a_wrong_number_of_visitors_is_refused_in_one_sentence(visitors: str) -> None:
    """The range of fictional numbers has room for 99."""
    demo = subprocess.run(
        [sys.executable, "-m", "deploy.demo"],
        cwd=ROOT, env={**os.environ, "VISITORS": visitors}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert demo.returncode == 2
    assert demo.stderr.strip().endswith(f"{visitors!r} is not a number from 1 to 99.")
