# SPDX-License-Identifier: Apache-2.0
"""What a peer hands to the harness."""
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Job:
    call: Callable                   # what is timed; inputs are bound, outputs stay in the peer's own type
    outputs: Callable                # runs once, returns numpy arrays in the order of reference.expected
    eps: tuple = (0.0, 0.0)          # Performer: constants this peer adds to every feature and to the key sum
    tolerance: float | None = None   # where a peer computes something slightly different on purpose
    calls: int = 1                   # how many attention calls one `call` makes
    note: str = ""


DENSE_LIMIT = 1 << 28    # peers that need a mask of all pairs are not asked beyond 16384 x 16384: minutes and GiB per cell


class Peer:
    """A way to compute attention that users have today. `name` is the command line and result name."""
    name = ""

    def supports(self, cell) -> bool:
        raise NotImplementedError

    def build(self, cell, x) -> Job:
        raise NotImplementedError
