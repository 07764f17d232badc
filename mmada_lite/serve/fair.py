"""A queue that is fair between clients: they take turns, and of one client the first that came is first. It knows what waits
for whom, and nothing of what it is.

It is self-clocked fair queueing (Golestani, INFOCOM 1994) of tasks that cost alike: a client's next turn is the one behind its
last, or behind the turn that is taken now where it has none since. So whoever comes anew is next, once for each client.
"""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items by the clients that wait for them."""

    def __init__(self) -> None:
        self._again: deque[Item] = deque()
        self._lines: dict[str, deque[Item]] = {}
        self._turns: dict[str, int] = {}  # of each client that waits: its next turn
        self._last: dict[str, int] = {}  # turns that were taken, not long ago
        self._now = 0

    def __len__(self) -> int:
        return len(self._again) + sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Item]:
        yield from self._again
        for line in self._lines.values():
            yield from line

    def push(self, item: Item, client: str) -> None:
        """Put an item behind the others of its client."""
        if client not in self._lines:
            self._lines[client] = deque()
            self._turns[client] = max(self._now, self._last.get(client, 0)) + 1
        self._lines[client].append(item)

    def push_again(self, item: Item) -> None:
        """Put an item before all others: its turn was taken already."""
        self._again.append(item)

    def peek(self) -> Item:
        """The next one. Raises IndexError where nothing waits."""
        return self._again[0] if self._again else self._lines[self._client()][0]

    def pop(self) -> Item:
        """Take the next one. Raises IndexError where nothing waits."""
        if self._again:
            return self._again.popleft()
        client = self._client()
        item = self._lines[client].popleft()
        self._now = self._last[client] = self._turns[client]
        self._turns[client] += 1
        self._drop_if_empty(client)
        self._last = {name: turn for name, turn in self._last.items() if turn >= self._now}
        return item

    def remove(self, item: Item) -> bool:
        """Take an item out of its line. Returns whether it was there."""
        if item in self._again:
            self._again.remove(item)
            return True
        for client, line in self._lines.items():
            if item in line:
                line.remove(item)
                self._drop_if_empty(client)
                return True
        return False

    def clear(self) -> None:
        self._again.clear()
        self._lines.clear()
        self._turns.clear()

    def _client(self) -> str:
        """Whose turn it is: of equal turns, that of the client who had one longest ago, then of who came first."""
        if not self._lines:
            raise IndexError("nothing waits")
        return min(self._lines, key=lambda client: (self._turns[client], self._last.get(client, 0)))

    def _drop_if_empty(self, client: str) -> None:
        if not self._lines[client]:
            del self._lines[client], self._turns[client]
