"""CI's own decisions: the tests on containers run, are left out with a reason, or fail.

Method: the real script in a tree of its own, with programs that only say what they were asked.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


class Ci:
    """A checkout beside (or without) an engine, and what was run there, in order."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.programs = folder / "programs"
        self.engine = folder / "shared" / "engine"
        self._said = folder / "said"
        (self.checkout / ".ci").mkdir(parents=True)
        shutil.copy(ROOT / ".ci" / "run", self.checkout / ".ci" / "run")
        self.program("make", 'echo "make $*" >> SAID')
        self.program("id", "echo 0")
        self.program("grep", "exit 0")
        self.program("python", "exit 1", self.checkout / ".venv" / "bin")

    def program(self, name: str, script: str, folder: Path | None = None) -> None:
        path = (folder or self.programs) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script.replace('SAID', str(self._said))}\n", "utf-8")
        path.chmod(0o755)

    def with_engine(self, up: str = "exit 0") -> None:
        self.program("up", f'echo "up $ENGINE_IMAGES" >> SAID; {up}', self.engine)
        self.program("down", "echo down >> SAID", self.engine)

    def run(self) -> tuple[int, list[str], str]:
        """Return the exit status, what was run, and what CI said."""
        done = subprocess.run(
            [str(self.checkout / ".ci" / "run")],
            env={"PATH": f"{self.programs}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        return (
            done.returncode,
            self._said.read_text("utf-8").splitlines(),
            done.stdout + done.stderr,
        )


ALWAYS = ["make check", "make test"]


@pytest.fixture
def ci(tmp_path: Path) -> Ci:
    return Ci(tmp_path)


def test_an_engine_that_answers_is_used_and_left_alone(ci: Ci) -> None:
    ci.program("python", "exit 0", ci.checkout / ".venv" / "bin")
    ci.with_engine()
    assert ci.run() == (0, [*ALWAYS, "make test-containers"], "")


def test_an_engine_that_was_brought_up_is_taken_down(ci: Ci) -> None:
    ci.with_engine()
    steps = ["up postgres kafka", "make test-containers", "down"]
    assert ci.run() == (0, [*ALWAYS, *steps], "")


def test_an_engine_that_does_not_come_up_is_a_failure(ci: Ci) -> None:
    ci.with_engine(up="exit 3")
    status, steps, said = ci.run()
    assert (status, steps) == (1, [*ALWAYS, "up postgres kafka", "down"])
    assert said.startswith("CI: ")
    assert "shared/engine/up failed" in said


def test_failed_tests_are_a_failure_and_the_engine_goes(ci: Ci) -> None:
    ci.with_engine()
    ci.program("make", 'echo "make $*" >> SAID; [[ $1 != test-containers ]]')
    status, steps, _ = ci.run()
    assert (status, steps[-1]) == (1, "down")


def test_failed_checks_end_it(ci: Ci) -> None:
    ci.with_engine()
    ci.program("make", 'echo "make $*" >> SAID; exit 2')
    assert ci.run()[:2] == (2, ["make check"])


@pytest.mark.parametrize(
    ("program", "script", "reason"),
    [
        ("id", "echo 1000", "only root can bring one up"),
        ("grep", "exit 1", "is for Debian"),
        (None, "", "there is no "),
    ],
)
def test_what_cannot_be_run_is_left_out_and_said(
    ci: Ci, program: str | None, script: str, reason: str
) -> None:
    if program:
        ci.with_engine()
        ci.program(program, script)
    status, steps, said = ci.run()
    assert (status, steps) == (0, ALWAYS)
    assert said.startswith("CI: left out: make test-containers: no Docker engine answers and ")
    assert reason in said
    assert said.count("\n") == 1
