"""Tables of different lengths with an escape for what lies outside of them: how the learned priors reach the coders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tersor.coding.entropy.coders import Coder, decode_indexed, encode_indexed
from tersor.coding.entropy.container import read_varint, write_varint
from tersor.coding.entropy.reference import RangeDecoder, RangeEncoder
from tersor.coding.entropy.tables import IntTable
from tersor.coding.errors import CorruptStream
from tersor.errors import InvalidArgument

TABLE_BITS = 16
# Values of a latent beyond this are an accident of training, not data.
_LARGEST = 2**30


class EscapeTables(nn.Module):
    """Integer tables for consecutive values, the last symbol of each the escape. All of its state is in buffers."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weights", "lengths", "offsets"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int32))

    def set(self, pmfs: Sequence[NDArray[np.float64]], offsets: NDArray[np.int64], tail_mass: float) -> None:
        """Quantise ``pmfs``, of which the first entry belongs to the value ``offset``.

        Raises:
            InvalidArgument: If one is too wide for a table of 16 bits.
        """
        if max(map(len, pmfs)) >= 1 << (TABLE_BITS - 1):
            raise InvalidArgument(
                f"a learned distribution is {max(map(len, pmfs)):,} steps wide; the latent needs a larger step or a smaller scale"
            )
        tables = [IntTable.from_pmf(np.append(pmf, tail_mass), TABLE_BITS) for pmf in pmfs]
        self.weights = torch.from_numpy(np.concatenate([table.weights for table in tables]).astype(np.int32))
        self.lengths = torch.tensor([len(table) for table in tables], dtype=torch.int32)
        self.offsets = torch.from_numpy(offsets.astype(np.int32))

    def as_tables(self) -> list[IntTable]:
        """The tables.

        Raises:
            InvalidArgument: Before they were made.
        """
        if not self.lengths.numel():
            raise InvalidArgument("this prior has no tables yet; call update() after training")
        parts = torch.split(self.weights, self.lengths.tolist())
        return [IntTable(part.cpu().numpy()) for part in parts]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # The tables of the file replace ours whatever their sizes.
        for name in ("weights", "lengths", "offsets"):
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, stored.detach().clone())
        super()._load_from_state_dict(state_dict, prefix, *rest)


def code_values(values: NDArray[np.float64], tables: EscapeTables, indexes: NDArray[np.integer], coder: Coder = "range") -> bytes:
    """Code whole numbers ``values``, each with the table that ``indexes`` (of their shape) names, by ``coder``.

    Raises:
        InvalidArgument: On NaN, Inf or numbers beyond 2^30.
    """
    if not (np.abs(values) <= _LARGEST).all():
        raise InvalidArgument(f"a latent holds NaN, Inf or values beyond {_LARGEST}; it cannot be coded")
    ready = tables.as_tables()
    shifted = values.astype(np.int64) - tables.offsets.cpu().numpy()[indexes]
    escape = tables.lengths.cpu().numpy()[indexes] - 1
    outside = (shifted < 0) | (shifted >= escape)
    excess = RangeEncoder()
    for value, width in zip(shifted[outside].tolist(), escape[outside].tolist(), strict=True):
        excess.encode_uniform(int(value < 0), 2)
        excess.encode_gamma(-value if value < 0 else value - width + 1)
    main = encode_indexed(np.where(outside, escape, shifted), ready, indexes, coder=coder)
    return write_varint(len(main)) + main + excess.finish()


def read_values(data: bytes, tables: EscapeTables, indexes: NDArray[np.integer], coder: Coder = "range") -> NDArray[np.float64]:
    """The whole numbers that :func:`code_values` coded, by the same ``coder``.

    Raises:
        CorruptStream: If the bytes are cut short or too long.
    """
    size, begin = read_varint(data, 0)
    if size > len(data) - begin:
        raise CorruptStream("a coded latent is cut short")
    symbols = decode_indexed(data[begin : begin + size], tables.as_tables(), indexes, coder=coder).astype(np.int64)
    escape = tables.lengths.cpu().numpy()[indexes] - 1
    outside = symbols == escape
    rest = RangeDecoder(data[begin + size :])
    found = []
    for width in escape[outside].tolist():
        negative = rest.decode_uniform(2)
        excess = rest.decode_gamma()
        found.append(max(-excess, -2 * _LARGEST) if negative else min(excess + width - 1, 2 * _LARGEST))
    rest.finish()
    symbols[outside] = found
    return (symbols + tables.offsets.cpu().numpy()[indexes]).astype(np.float64)
