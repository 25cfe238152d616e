"""Sparse mixtures of learned atoms, fitted to the layer's output (CoSpaDi)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number, check_stats, check_weight
from tersor.layerwise.dictionary_learning import Coder, Dictionary, learn_dictionary, solve_support
from tersor.layerwise.gptq import gptq
from tersor.layerwise.grid import Grid
from tersor.layerwise.hessian import damped_cholesky
from tersor.layerwise.registry import find_method, register
from tersor.layerwise.stats import LayerStats
from tersor.weights import CompressedWeight, DenseWeight, DictionaryWeight, SparseWeight, check_matrix, distinct_nbytes
from tersor.weights.kept import FloatValues, KeptValues, ShortValues
from tersor.weights.positions import positions_of

Accounting = Literal["exact", "effective"]

_DEFAULT_KEEP = 0.5


@dataclass(frozen=True)
class _Options:
    """What a dictionary is made with; see :func:`cospadi`."""

    keep: float | None
    atoms_per_nonzero: float
    iterations: int
    power_iterations: int
    coder: Coder
    accounting: Accounting
    code_bits: int
    dictionary_bits: int | None
    damping: float
    seed: int

    def __post_init__(self) -> None:
        check_number("keep", self.fraction, 0.0, 1.0)
        check_number("atoms_per_nonzero", self.atoms_per_nonzero, 1.0)
        check_integer("iterations", self.iterations, 1)
        check_integer("power_iterations", self.power_iterations, 1)
        check_choice("coder", self.coder, Coder)
        check_choice("accounting", self.accounting, Accounting)
        check_number("damping", self.damping, 0.0)
        check_integer("seed", self.seed, 0)
        if self.code_bits not in (14, 16):
            check_integer("code_bits, unless 14 or 16,", self.code_bits, 1, 8)
        if self.dictionary_bits is not None:
            check_integer("dictionary_bits", self.dictionary_bits, 1, 8)

    @property
    def fraction(self) -> float:
        """Of the bytes of the 16-bit weight."""
        return _DEFAULT_KEEP if self.keep is None else self.keep

    def sizes(self, outputs: Sequence[int], in_features: int) -> tuple[int, int]:
        """Atoms of a dictionary and nonzeros of a code that stay within ``keep``.

        Raises:
            InvalidArgument: If not even one atom does.
        """
        total = sum(outputs)
        budget = self.fraction * 16 * total * in_features
        atom_bits = self.dictionary_bits or 16
        value_bits = 16 if self.accounting == "effective" else self.code_bits
        mask_bits = 0 if self.accounting == "effective" else 1
        n_atoms = int(budget / (atom_bits * in_features + (value_bits / self.atoms_per_nonzero + mask_bits) * total))
        while n_atoms > 0 and self.accounting == "exact" and self._bits(n_atoms, outputs, in_features) > budget:
            n_atoms -= 1
        if n_atoms < 1:
            shapes = " and ".join(f"({size}, {in_features})" for size in outputs)
            rule = f"a single atom is above keep={self.fraction:g} on a weight of shape {shapes}"
            raise InvalidArgument(f"{rule}, so a dictionary saves nothing: use the method 'keep'")
        return n_atoms, self._nonzeros(n_atoms)

    def _nonzeros(self, n_atoms: int) -> int:
        return max(int(n_atoms / self.atoms_per_nonzero), 1)

    def _bits(self, n_atoms: int, outputs: Sequence[int], in_features: int) -> int:
        """All that is stored: atoms, values, the bit map padded to bytes, scales of what is quantised."""
        bits = self.dictionary_bits
        atom = 16 * in_features if bits is None else 8 * ceil(bits * in_features / 8) + 16 + 8
        code = self._nonzeros(n_atoms) * self.code_bits + 8 * ceil(n_atoms / 8) + (16 if self.code_bits <= 8 else 0)
        return n_atoms * atom + sum(outputs) * code + (8 if self.code_bits == 14 else 0)


@register("cospadi", needs="inputs", makes="dictionary", paper="Makhov, Shopkhoev et al.: CoSpaDi, 2025")
def cospadi(
    weight: Tensor, stats: LayerStats | None, *,
    keep: float | None = None, atoms_per_nonzero: float = 2.0, iterations: int = 12, power_iterations: int = 8, coder: Coder = "omp",
    accounting: Accounting = "exact", code_bits: int = 14, dictionary_bits: int | None = None, damping: float = 1e-6, seed: int = 42,
) -> DictionaryWeight:  # fmt: skip
    """A dictionary and sparse codes that lose least of ``W x`` over the calibration inputs, by K-SVD in the metric of the inputs.

    A union of subspaces in the place of the one subspace of :func:`whitened_svd`, and closer at the same bytes; the fitting takes
    seconds to a minute a layer instead of a fraction of a second. Without inputs pass ``LayerStats.identity``.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs.
        keep: Fraction of the bytes of the 16-bit weight, 0.5 unless given.
        atoms_per_nonzero: Atoms for each nonzero of a code; 2 is the paper's choice and makes the bit map cost two bits a value.
        iterations: Sweeps of coding and updating, 60 in the paper; most is won after 8.
        power_iterations: For each atom in a sweep.
        coder: ``"omp"`` (the paper's), ``"ols"`` or ``"iht"``, see :func:`tersor.layerwise.dictionary_learning.encode`.
        accounting: ``"exact"`` fits every stored byte into ``keep``; ``"effective"`` is the paper's, a word for each value and none for
            positions, which is exact for 14-bit values and two atoms a nonzero.
        code_bits: 14 or 16 for floats, 1 to 8 for a grid with one scale a row.
        dictionary_bits: 1 to 8 to round the atoms in the metric of the inputs and fit the codes anew; float16 unless given.
        damping: Added to the diagonal of the second moment, relative to its mean; raised tenfold until the factorisation succeeds.
        seed: Of the choice of the first atoms.

    Returns:
        The weight; its ``report`` holds ``atoms``, ``nonzeros``, both accountings as fractions of the 16-bit weight
        (``keep_effective``, ``keep_exact``), the ``sweeps`` run, the ``error`` of the learned factors before rounding, and the ``damping``.

    Raises:
        InvalidArgument: On an option out of range, a budget below one atom, or missing or foreign statistics.

    Reference:
        Makhov, Shopkhoev et al.: "CoSpaDi: Compressing LLMs via Calibration-Guided Sparse Dictionary Learning", 2025.
    """
    options = _Options(
        keep, atoms_per_nonzero, iterations, power_iterations, coder, accounting, code_bits, dictionary_bits, damping, seed,
    )  # fmt: skip
    return _fit([weight], [check_stats("cospadi", stats)], options)[0]


def cospadi_group(weights: Sequence[Tensor], stats: Sequence[LayerStats], **options: Any) -> list[DictionaryWeight]:
    """One dictionary for several layers of the same input width, such as the same projection of neighbouring blocks.

    The atoms are learned in the mean of the layers' metrics; every layer's codes are then fitted once more in its own, which the paper
    does not do. The weights hold the same dictionary module: :func:`tersor.weights.distinct_nbytes` counts it once.

    Args:
        weights: ``[out_features, in_features]`` each.
        stats: Statistics of the inputs of each.
        **options: As for :func:`cospadi`; ``keep`` is the fraction of the bytes of all the 16-bit weights together.

    Raises:
        InvalidArgument: As for :func:`cospadi`, and if the layers differ in width or the statistics in number.
    """
    if not weights or len(weights) != len(stats) or len({weight.shape[-1] for weight in weights}) > 1:
        shapes = ", ".join(str(tuple(weight.shape)) for weight in weights) or "none"
        raise InvalidArgument(f"a group needs weights of one input width and statistics of each; got {shapes} and {len(stats)} statistics")
    method = find_method("cospadi")
    method.check_options(options)
    return _fit(weights, stats, _Options(**(method.options | options)))


def _fit(weights: Sequence[Tensor], stats: Sequence[LayerStats], options: _Options) -> list[DictionaryWeight]:
    matrices = [check_weight(weight, own) for weight, own in zip(weights, stats, strict=True)]
    outputs, in_features = [matrix.shape[0] for matrix in matrices], matrices[0].shape[1]
    n_atoms, n_nonzero = options.sizes(outputs, in_features)
    mean = torch.stack([own.hessian.double() for own in stats]).mean(0)
    root, used = damped_cholesky(mean, options.damping)
    signals = torch.cat(matrices).double() @ root
    # Float32 is only safe for numbers of ordinary size: learn at unit scale.
    unit = float(signals.square().mean().sqrt()) or 1.0
    learned = learn_dictionary(
        (signals / unit).float(), n_atoms, n_nonzero,
        iterations=options.iterations, power_iterations=options.power_iterations, coder=options.coder, seed=options.seed,
    )  # fmt: skip
    atoms = torch.linalg.solve_triangular(root.T, learned.atoms.double().T, upper=True).T
    atoms, codes = _balance(atoms, learned.codes.double() * unit)
    dictionary = _stored_atoms(atoms, mean, options)
    fitted = list(codes.split(outputs))
    if options.dictionary_bits is not None or len(stats) > 1:
        fitted = [_refit(part, dictionary, matrix, own, options.damping) for part, matrix, own in zip(fitted, matrices, stats, strict=True)]
    made = [DictionaryWeight(_stored_codes(part, options.code_bits), dictionary) for part in fitted]
    _report(made, learned, n_atoms, n_nonzero, used)
    return made


def _balance(atoms: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Every atom and its codes at the same largest magnitude, which keeps both clear of the ends of float16."""
    largest, code = atoms.abs().amax(1), codes.abs().amax(0)
    scale = torch.where((largest > 0) & (code > 0), (code / largest.clamp(min=1e-300)).sqrt(), 1 / largest.clamp(min=1e-300))
    return atoms * scale.unsqueeze(1), codes / scale


def _stored_atoms(atoms: Tensor, hessian: Tensor, options: _Options) -> CompressedWeight:
    if options.dictionary_bits is None:
        stored = atoms.half()
        check_matrix(stored, "the dictionary rounded to float16")
        return DenseWeight(stored)
    metric = replace(LayerStats.identity(atoms.shape[1]), hessian=hessian, cache={})
    return gptq(atoms.float(), metric, bits=options.dictionary_bits, group_size=-1)


def _refit(codes: Tensor, dictionary: CompressedWeight, weight: Tensor, stats: LayerStats, damping: float) -> Tensor:
    """Codes on their support that are closest to the layer's own output with the atoms as they are stored."""
    root, _ = damped_cholesky(stats.hessian.double(), damping)
    signals = weight.double() @ root
    unit = float(signals.square().mean().sqrt()) or 1.0
    atoms = dictionary.dense().double() @ root
    return solve_support(atoms.float(), (signals / unit).float(), (codes / unit).float()).double() * unit


def _stored_codes(codes: Tensor, bits: int) -> SparseWeight:
    values, mask = codes.float(), codes != 0
    if bits > 8:
        kept: KeptValues = ShortValues.of(values, mask) if bits == 14 else FloatValues.of(values, mask, torch.float16)
        return SparseWeight(positions_of(mask), kept)
    grid = Grid.of(codes.shape[1], bits, "symmetric", -1)
    scale, zero = grid.fit(values, "minmax")
    return SparseWeight.from_quantized(grid.pack(grid.quantize(values, scale, zero), scale, zero), mask)


def _report(made: list[DictionaryWeight], learned: Dictionary, n_atoms: int, n_nonzero: int, damping: float) -> None:
    outputs, in_features = sum(weight.shape[0] for weight in made), made[0].shape[1]
    entries = outputs * in_features
    for weight in made:
        weight.report = {
            "atoms": n_atoms, "nonzeros": n_nonzero,
            "keep_effective": (n_atoms * in_features + n_nonzero * outputs) / entries, "keep_exact": distinct_nbytes(made) / (2 * entries),
            "sweeps": len(learned.errors), "error": learned.errors[-1], "damping": damping,
        }  # fmt: skip
