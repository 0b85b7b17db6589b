"""`make chaos FAULTS=200 SEED=…`: the long fault run; `--replay <report>` repeats one."""

import argparse
import asyncio
import secrets
import shutil
import sys
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.layout import ROOT
from tests.chaos.run import lines, new_plan, read_plan, run

SECONDS_PER_FAULT = 4.0


def main() -> int:
    """Run; 0 when everything holds, 1 when not, 2 when a replay's verdict is another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--visitors", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=60)
    parser.add_argument("--kafka-nodes", type=int, default=3)
    parser.add_argument("--gap-s", type=float, default=SECONDS_PER_FAULT)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--replay", type=Path, help="a report: the same plan again")
    arguments = parser.parse_args()
    before = None
    if arguments.replay is not None:
        plan, before = read_plan(arguments.replay)
    else:
        seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
        plan = new_plan(
            seed=seed,
            n_visitors=arguments.visitors,
            at_once=arguments.at_once,
            n_faults=arguments.faults,
            gap_s=arguments.gap_s,
            kafka_nodes=arguments.kafka_nodes,
        )
    folder = ROOT / "var" / "chaos" / "stack"
    shutil.rmtree(folder, ignore_errors=True)

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    try:
        outcome = asyncio.run(run(folder, plan, say))
    except StackError as error:
        sys.stderr.write(f"seed {plan.seed}: {error}\n")
        return 1
    path = ROOT / "var" / "chaos" / f"{plan.seed}.json"
    outcome.write(path)
    for line in lines(outcome):
        say(line)
    say(f"report: {path}")
    if outcome.holds:
        shutil.rmtree(folder, ignore_errors=True)
    verdict = "holds" if outcome.holds else "fails"
    if before is not None and before != verdict:
        say(f"the run before: {before}")
        return 2
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
