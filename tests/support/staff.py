"""Runs `python -m services.consent` as staff does."""

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.layout import ROOT
from tests.support.identities import shown
from tests.support.stack import World


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs `python -m services.<service>` as staff does."""

    def __init__(self, world: World, folder: Path, service: str = "consent") -> None:
        self._module = f"services.{service}"
        self._environment = {
            **world.environments[service],
            f"{service.upper()}_HASH_KEYS_FOLDER": str(folder),
        }

    async def run(self, *arguments: str) -> Said:
        found = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", self._module, *shown(*arguments)],
            cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        return Said(found.returncode, found.stdout, found.stderr)
