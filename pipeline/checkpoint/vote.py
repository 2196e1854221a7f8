"""The ranks' vote on a save, over the key-value store through which they found each other.

    ballot = Ballot(staging.name)                       # a name that all ranks share and nobody has used before
    ballot.cast({"errors": [], ...})                    # every rank: it has written its part, or could not
    ballot.announce(verdict(ballot.reports()))          # rank 0: once all have reported
    errors = ballot.verdict()                           # every rank: [] when the checkpoint counts

Not a collective: those have a time limit, after which their group is lost for good, while a far file system may take
any time to write. Ranks wait here for as long as it takes; that a rank is gone is noticed by who trains (or waits in
`Saver.settle`) beside the vote. A store serves one call at a time, so it is asked now and then and never blocked.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from pipeline.dist import default_store, rank, world_size

FIRST_WAIT_S, LONGEST_WAIT_S = 0.002, 0.25


class Ballot:
    """One vote. Used by one thread of every rank."""

    def __init__(self, name: str) -> None:
        self._store = default_store()
        self._name = name

    def cast(self, report: dict[str, Any]) -> None:
        """Say what this rank has to say."""
        self._store.set(self._key(rank()), json.dumps(report))

    def reports(self) -> list[dict[str, Any]]:
        """What all ranks said, in rank order, once they have. Rank 0."""
        keys = [self._key(number) for number in range(world_size())]
        self._wait(keys)
        found = [json.loads(self._store.get(key)) for key in keys]
        for key in keys:
            self._store.delete_key(key)
        return found

    def announce(self, errors: Sequence[str]) -> None:
        """End the vote. Rank 0."""
        self._store.set(self._key("verdict"), json.dumps(list(errors)))

    def verdict(self) -> list[str]:
        """What rank 0 announced, once it has."""
        key = self._key("verdict")
        self._wait([key])
        errors: list[str] = json.loads(self._store.get(key))
        return errors

    def _key(self, what: int | str) -> str:
        return f"{self._name}/{what}"

    def _wait(self, keys: list[str]) -> None:
        pause_s = FIRST_WAIT_S
        while not self._store.check(keys):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_WAIT_S)
