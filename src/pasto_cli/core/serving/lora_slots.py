"""Positions that an upstream holds as LoRAs: loaded when first wanted, the least recent one let go.

A position in use is never unloaded. So more than the limit may be there for a while, where more
positions than that have answers running.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from pasto_cli.core.serving.engine import Position


class LoraSlots:
    """Which positions are loaded, and how many answers use each.

    Args:
        name: Name of a position at the upstream.
        load: Makes a position ready there, under a name.
        unload: Takes a name away there.
        limit: Most positions that stay loaded.
    """

    def __init__(
        self,
        name: Callable[[Position], str],
        load: Callable[[str, Position], Awaitable[None]],
        unload: Callable[[str], Awaitable[None]],
        limit: int,
    ) -> None:
        self.name, self.load, self.unload, self.limit = name, load, unload, limit
        self.users: OrderedDict[str, int] = OrderedDict()
        """Name -> answers that use it; the least recently wanted one first."""
        self._changing = asyncio.Lock()

    async def take(self, position: Position) -> str:
        """The name of a position, which stays loaded until `give`.

        Raises:
            Refusal: If the upstream does not take it.
        """
        name = self.name(position)
        if name not in self.users:
            async with self._changing:
                if name not in self.users:  # another request may have been first
                    await self._make_room()
                    await self.load(name, position)
                    self.users[name] = 0
        self.users.move_to_end(name)
        self.users[name] += 1
        return name

    def give(self, name: str) -> None:
        """One answer less uses a name."""
        if name in self.users:
            self.users[name] -= 1

    async def reload(self, position: Position) -> None:
        """Load a position again that the upstream has lost, such as by a restart."""
        name = self.name(position)
        async with self._changing:
            await self.load(name, position)

    async def _make_room(self) -> None:
        """Unload what has waited longest, until one more fits."""
        idle = [name for name, users in self.users.items() if users == 0]
        surplus = len(self.users) + 1 - self.limit
        for name in idle[: max(surplus, 0)]:
            # First, so that a request that comes meanwhile loads it anew.
            del self.users[name]
            await self.unload(name)
