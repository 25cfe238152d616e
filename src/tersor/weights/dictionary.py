"""A weight whose rows are sparse mixtures of the atoms of a dictionary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights.base import CompressedWeight, weight_from_config
from tersor.weights.checking import read_shape
from tersor.weights.dense import DenseWeight
from tersor.weights.kept import ShortValues
from tersor.weights.sparse import SparseWeight


class DictionaryWeight(CompressedWeight):
    """``W = codes @ dictionary`` with sparse codes: every output feature mixes its own few of the shared atoms.

    At the bytes of a :class:`LowRankWeight` it has more atoms than that has rank, and each row a subspace of its own. Codes cost their
    values and the smaller of a bit an entry and an index a value. Weights of several layers may hold the same ``dictionary`` module, whose
    bytes then count once, see :func:`distinct_nbytes`.

    Args:
        codes: ``[out_features, n_atoms]``.
        dictionary: ``[n_atoms, in_features]``, a tensor (kept in its own type) or any compressed weight; one atom a row.

    Raises:
        InvalidArgument: If the codes do not belong to as many atoms.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> weight = DictionaryWeight(SparseWeight.from_dense(codes, codes != 0), torch.eye(3).half())
        >>> weight.dense(), weight.n_atoms, weight.nbytes
        (tensor([[2., 0., 0.],
                [0., 0., 1.]]), 3, 24)
    """

    kind = "dictionary"

    def __init__(self, codes: SparseWeight, dictionary: CompressedWeight | Tensor) -> None:
        dictionary = DenseWeight(dictionary) if isinstance(dictionary, Tensor) else dictionary
        if codes.shape[1] != dictionary.shape[0]:
            raise InvalidArgument(f"codes of shape {codes.shape} are for {codes.shape[1]} atoms, the dictionary has {dictionary.shape[0]}")
        super().__init__((codes.shape[0], dictionary.shape[1]))
        self.codes = codes
        self.dictionary = dictionary

    @property
    def n_atoms(self) -> int:
        """Rows of the dictionary."""
        return self.dictionary.shape[0]

    @property
    def nonzeros(self) -> float:
        """Mean number of atoms in a row of the weight."""
        return self.codes.positions.kept / self.shape[0]

    def dense(self) -> Tensor:
        return self.codes.dense() @ self.dictionary.dense()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.codes(self.dictionary(x))
        return y

    def rows(self, index: Tensor) -> Tensor:
        return self.codes.rows(index) @ self.dictionary.dense()

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "codes": self.codes.config, "dictionary": self.dictionary.config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DictionaryWeight:
        shape = read_shape(config)
        codes, dictionary = weight_from_config(config["codes"]), weight_from_config(config["dictionary"])
        fits = codes.shape[1] == dictionary.shape[0] and (codes.shape[0], dictionary.shape[1]) == shape
        if not isinstance(codes, SparseWeight) or not fits:
            parts = f"{codes.kind} codes of shape {codes.shape} and atoms of shape {dictionary.shape}"
            raise CorruptFile(f"a stored dictionary weight of shape {list(shape)} has {parts}")
        return cls(codes, dictionary)

    def check_stored(self, tensors: dict[str, Tensor], name: str) -> None:
        if isinstance(self.codes.values, ShortValues) and bool(((tensors["codes.values.high"] & 0x7C) == 0x7C).any()):
            raise CorruptFile(f"{name}: the codes hold NaN or Inf")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.nonzeros:.0f} of {self.n_atoms} atoms a row"


def distinct_nbytes(weights: Iterable[CompressedWeight]) -> int:
    """Bytes of all stored buffers of ``weights``, those that several of them hold counted once."""
    buffers = {id(buffer): buffer for weight in weights for buffer in weight.state_dict(keep_vars=True).values()}
    return sum(buffer.numel() * buffer.element_size() for buffer in buffers.values())
