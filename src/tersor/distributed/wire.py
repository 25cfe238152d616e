"""Collectives that count what they send, and turn a lost worker into one sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InvalidArgument, TersorError


def in_order(rows: Tensor) -> Tensor:
    """The sum of ``rows`` ``[n, *shape]``, one after the other: the same bits wherever an entry lies."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


class Wire:
    """The process group of a run; without an initialised group, a world of one.

    It blocks until a collective is done. Futures would let the communication of one bucket overlap with the backward pass of the next,
    but an error inside a callback of a future, such as a lost peer, hangs the backward pass instead of raising (PyTorch 2.14, gloo).

    Args:
        group: The group; the default group unless given.
        alone: Stay out of any group: for workers that are simulated.

    Attributes:
        payload_bytes: Bytes of all messages that this worker handed to collectives.
        ring_bytes: Bytes that ring algorithms put on the wire for them: ``2 (W - 1) / W`` times an all-reduce, ``W - 1`` times a gather.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, alone: bool = False) -> None:
        self._group = group
        self._alone = alone
        self.payload_bytes = 0
        self.ring_bytes = 0.0

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return dist.get_world_size(self._group) if dist.is_initialized() and not self._alone else 1

    @property
    def rank(self) -> int:
        """Number of this worker, from 0."""
        return dist.get_rank(self._group) if dist.is_initialized() and not self._alone else 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all workers, added in the order of their ranks; bit-equal on every worker.

        Every worker adds up one piece and all gather the pieces, which takes the traffic of a ring. A ring would add every piece in an
        order that depends on where it lies, so that a run that was resumed, whose buckets differ for a step, would round differently.
        """
        world = self.world_size
        self._count(tensor, 2 * (world - 1) / world)
        if world == 1:
            return tensor
        flat = F.pad(tensor.flatten(), (0, -tensor.numel() % world))
        pieces = flat.new_empty(world, len(flat) // world)
        self._run(lambda: dist.all_to_all_single(pieces, flat.view_as(pieces), group=self._group))
        return self._gathered(in_order(pieces)).flatten()[: tensor.numel()].view_as(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """``tensor`` of every worker, ``[world_size, *shape]``; sizes must agree."""
        self._count(tensor, self.world_size - 1)
        return self._gathered(tensor)

    def _gathered(self, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty(self.world_size, *tensor.shape)
        if self.world_size > 1:
            self._run(lambda: dist.all_gather(list(gathered), tensor, group=self._group))
        else:
            gathered[0] = tensor
        return gathered

    def broadcast(self, tensor: Tensor) -> Tensor:
        """``tensor`` of the first worker, in place."""
        if self.world_size > 1:
            self._count(tensor, 1)
            self._run(lambda: dist.broadcast(tensor, group=self._group, group_src=0))
        return tensor

    def barrier(self) -> None:
        """Wait until every worker came here."""
        if self.world_size > 1:
            self._run(lambda: dist.barrier(group=self._group))

    def check_agreement(self, mine: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Refuse to go on unless every worker describes what it is about to send in the same way.

        Args:
            mine: Flat JSON-able description.
            device: Where the group communicates; the CPU unless given.

        Raises:
            InvalidArgument: Naming the first entry that differs, and both values.
        """
        if self.world_size == 1:
            return
        text = json.dumps(mine, sort_keys=True).encode()
        header = torch.tensor([len(text), int.from_bytes(hashlib.sha256(text).digest()[:7], "big")], device=device)
        headers = self.all_gather(header)
        if bool((headers == headers[0]).all()):
            return
        longest = int(headers[:, 0].max())
        padded = torch.zeros(longest, dtype=torch.uint8, device=device)
        padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        texts = [
            json.loads(bytes(row[: int(length)].tolist()))
            for row, length in zip(self.all_gather(padded), headers[:, 0], strict=True)
        ]  # fmt: skip
        for rank, other in enumerate(texts):
            for key in sorted({*texts[0], *other}):
                if texts[0].get(key) != other.get(key):
                    raise InvalidArgument(
                        f"workers disagree on {key}: {texts[0].get(key)!r} on rank 0, {other.get(key)!r} on rank {rank}; "
                        "every worker must build the same model and the same state"
                    )

    def _count(self, tensor: Tensor, ring_factor: float) -> None:
        nbytes = tensor.numel() * tensor.element_size()
        self.payload_bytes += nbytes
        self.ring_bytes += ring_factor * nbytes

    def _run(self, collective: Any) -> None:
        try:
            collective()
        except (RuntimeError, dist.DistError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TersorError(
                f"worker {self.rank} of {self.world_size} lost contact with another worker ({reason[:160]}); "
                "restart all workers from the last checkpoint"
            ) from None
