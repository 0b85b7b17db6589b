"""Every invariant of every service, asked twice: in SQL, and of what the service exports."""

import asyncio
import importlib
from dataclasses import dataclass

import asyncpg
import httpx
from prometheus_client.parser import text_string_to_metric_families

from deploy.demo.deletion import with_database
from deploy.demo.errors import DemoError
from deploy.demo.stack import INVARIANTS_EVERY_S
from deploy.local.stack import LocalStack

METRIC = "invariant_violations"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How many rows break an invariant; None = not asked that way."""

    service: str
    name: str
    by_sql: int | None
    by_metric: int | None

    @property
    def holds(self) -> bool:
        """Whether both ways say none; one that is not exported does not hold either."""
        return not self.by_sql and self.by_metric == 0


async def check(stack: LocalStack) -> list[Answer]:
    """Ask all services.

    Raises:
        DemoError: a service exports nothing.
    """
    by_sql = await _by_sql(stack)
    # the exported figure may be as old as the interval between two checks
    await asyncio.sleep(1.5 * INVARIANTS_EVERY_S)
    by_metric = await _by_metric(stack)
    return [
        Answer(
            service=service,
            name=name,
            by_sql=by_sql.get((service, name)),
            by_metric=by_metric.get((service, name)),
        )
        for service, name in sorted({*by_sql, *by_metric})
    ]


async def _by_sql(stack: LocalStack) -> dict[tuple[str, str], int]:
    found = {}
    for declared in with_database(stack):
        queries: dict[str, str] = importlib.import_module(
            f"services.{declared.name}.store"
        ).INVARIANTS
        connection = await asyncpg.connect(stack.admin_dsn(declared.name))
        try:
            for name, query in queries.items():
                found[declared.name, name] = int(await connection.fetchval(query))
        finally:
            await connection.close()
    return found


async def _by_metric(stack: LocalStack) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    async with httpx.AsyncClient(trust_env=False) as http:
        for declared in with_database(stack):
            answer = await http.get(f"{stack.admin_url(declared.name)}/metrics")
            figures = {
                sample.labels["invariant"]: int(sample.value)
                for family in text_string_to_metric_families(answer.text)
                for sample in family.samples
                if sample.name == f"{declared.name}_{METRIC}"
            }
            if not figures:
                raise DemoError(f"{declared.name} exports no invariants.")
            found |= {(declared.name, name): n for name, n in figures.items()}
    return found
