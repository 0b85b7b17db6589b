"""Goal: `make prove-deletion` proves what it says, and says what it found (R-D9, R-D3, D1, D2).

Method: run it as a subprocess on a stack of its own and read its report.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.local.layout import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
EVERYWHERE = {"postgres data", "postgres write-ahead log", "kafka ad-view", "kafka call-request"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proof")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.proof", "--folder", str(folder), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=590,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def finds(report: dict[str, Any], when: str) -> list[dict[str, Any]]:
    (look,) = (look for look in report["looks"] if look["when"] == when)
    found: list[dict[str, Any]] = look["finds"]
    return found


def test_the_search_finds_everything_before_the_deadline(report: dict[str, Any]) -> None:
    """R-D9: in the database, its log and the topics; each canary, ids also as their bytes."""
    found = finds(report, "before the deadline")
    assert {find["label"] for find in found} == set(report["canaries"])
    assert {find["place"] for find in found} >= EVERYWHERE
    assert {"utf-8", "uuid", "inet"} <= {find["form"] for find in found}
    assert "kafka ad-view-dlq" in {
        find["place"] for find in found if find["label"] == "name in a dead letter"
    }
    assert not {find["place"] for find in found} & {"metrics", "secrets", "hash_keys"}


def test_after_it_only_what_the_hold_names_is_found(report: dict[str, Any]) -> None:
    """R-D3, D1, D2: in the database, and nowhere else."""
    found = finds(report, "after the deadline")
    labels = {find["label"] for find in found}
    assert {label.split(":")[0] for label in labels} == {"visitor 2"}
    assert {find["place"] for find in found} <= {"postgres data", "postgres write-ahead log"}
    assert {"visitor 2: callback number", "visitor 2: address", "visitor 2: visitor id"} <= labels


def test_after_the_release_nothing_is_found(report: dict[str, Any]) -> None:
    """R-D3, D1: a hold pauses; what fell due meanwhile is gone with it."""
    assert finds(report, "after the release") == []
    released = {
        line["table"]: line["n_rows"] for line in report["receipts"] if line["rule"] == "R-D3"
    }
    assert released["call"] == 1
    assert released["ad_view"] == 6
    lines = [(line["rule"], line["service"], line["table"], line["kind"], line["before_day"])
             for line in report["receipts"]]  # fmt: skip
    assert len(lines) == len(set(lines)), "a receipt is counted twice"
    assert report["is_proved"] is True


def test_the_page_can_be_read_and_shows_no_value(report: dict[str, Any], folder: Path) -> None:
    """R-D9, D4: for a data-protection officer, in German and in English."""
    pages = {path.suffixes[0]: path.read_text("utf-8") for path in folder.glob("*.txt")}
    assert "Löschung ist nachgewiesen" in pages[".de"]
    assert "the deletion is proved" in pages[".en"]
    for text in (*pages.values(), json.dumps(report)):
        assert "23125" not in text
        assert "203.0.113" not in text
        assert "2001:db8" not in text
        assert "nnchen" not in text
