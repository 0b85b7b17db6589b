"""What stays of a day's calls when its addresses go (R-C2, ADR 0028)."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from schemas.retention import DataKind, RetentionAction
from tests.support.bench import new_visitor_id
from tests.support.protected import Side, open_side
from tests.support.stack import World

WORLD_SERVICES = ("call_control",)


@pytest.fixture
async def side(world: World) -> AsyncIterator[Side]:
    async with open_side(world, "call_control") as found:
        await found.owner.execute("TRUNCATE call_statistics, call_statistics_day")
        yield found


@pytest.mark.parametrize("n_visitors", [9, 10])
@pytest.mark.parametrize("by", [RetentionAction.ANONYMISE, RetentionAction.DROP])
async def test_calls_are_counted_by_network_before_their_addresses_go(
    side: Side, by: RetentionAction, n_visitors: int
) -> None:
    """R-C2, R-D2: truncated, of ten visitors at least, once; the receipt says how many (D4)."""
    for number in range(n_visitors):
        visitor_id = new_visitor_id()
        for _ in range(1 + number % 2):
            await side.fill(visitor_id)
    kind = (DataKind.IP_ADDRESS,) if by is RetentionAction.ANONYMISE else (DataKind.TRAFFIC_DATA,)
    receipts = await side.handle(side.order(by, kinds=kind), side.order(by, kinds=kind))
    n_made = [sum(count.n_figures for count in receipt.counts) for receipt in receipts]
    is_told = n_visitors >= 10
    # whoever ordered a drop may not know of figures
    assert n_made == [int(is_told and by is RetentionAction.ANONYMISE), 0]
    async with side.bench.transaction() as ctx:
        found = await ctx.store.statistics(side.today)
    told = {
        "call_day": side.today.isoformat(),
        "network": "192.0.2.0/24",
        "n_visitors": 10,
        "n_calls": 15,
        "n_connected": 15,
    }
    assert found == ([told] if is_told else [])
    if by is RetentionAction.ANONYMISE:
        assert (await side.live())["call_address"] == []
        assert len((await side.live())["call"]) >= n_visitors


async def test_an_address_inside_an_address_is_truncated_too(side: Side) -> None:
    """R-C2: the first 48 bits of a 6to4 address are a whole IPv4 address, its host included."""
    for _ in range(10):
        await side.fill(new_visitor_id())
    await side.owner.execute("UPDATE call_address SET address = '2002:c000:0207::1'")
    await side.handle(side.order(RetentionAction.ANONYMISE, kinds=(DataKind.IP_ADDRESS,)))
    async with side.bench.transaction() as ctx:
        (found,) = await ctx.store.statistics(side.today)
    assert (found["network"], found["n_visitors"]) == ("2002:c000:200::/40", 10)


async def test_the_database_refuses_what_would_tell_of_few(side: Side) -> None:
    """R-C2: also from whoever writes past the handler."""
    for network, n_visitors in (
        ("192.0.2.0/24", 9),
        ("192.0.2.128/25", 10),
        ("2001:db8::/64", 10),
        ("2002:c000:207::/48", 10),
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await side.owner.execute(
                "INSERT INTO call_statistics VALUES (current_date, $1::text::cidr, $2, 1, 1)",
                network,
                n_visitors,
            )
    for statement in ("UPDATE call_statistics SET n_calls = 1", "DELETE FROM call_statistics_day"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await side.bench.fetch(statement)
