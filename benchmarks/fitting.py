"""Every method at the largest setting that fits given bytes of one layer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

FRACTIONS = (0.7, 0.5, 0.35)  # of bfloat16
# Bits a weight of a residual block with the default rank, its scales left out: only used to know how many blocks to fit.
BLOCK_BITS = 1.125
EORA_BITS = 3
Method = Callable[["Layer", float], Any]


@dataclass
class Layer:
    """What a method is given of one layer.

    Attributes:
        matrix: ``[out_features, in_features]``.
        stats: Of its inputs.
        sweeps: Of a dictionary.
        made: Weights that several sizes share, a stack or a base, with the seconds that each took, by label.
        saved: Seconds that :meth:`once` saved since this was last set to 0.
    """

    matrix: Any
    stats: Any
    sweeps: int
    made: dict[str, tuple[Any, float]] = field(default_factory=dict)
    saved: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return int(self.matrix.shape[0]), int(self.matrix.shape[1])

    def budget(self, fraction: float) -> int:
        """Bytes that a fraction of bfloat16 leaves."""
        return int(fraction * 2 * self.matrix.numel())

    def by(self, method: str, **options: Any) -> Any:
        """The layer by a registered method, scales in groups where it has them."""
        from tersor.layerwise import find_method
        from tersor.pipeline.calibrate import with_group_size

        name, given = with_group_size((method, options), self.shape[1])
        return find_method(name).function(self.matrix, self.stats, **given)

    def once(self, label: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made for the first size and kept for the others."""
        if label in self.made:
            self.saved += self.made[label][1]
        else:
            began = time.perf_counter()
            self.made[label] = (make(), time.perf_counter() - began)
        return self.made[label][0]

    def rank(self, nbytes: int) -> int:
        """Largest rank of float16 factors within ``nbytes`` and the dimensions."""
        return max(1, min(nbytes // (2 * sum(self.shape)), min(self.shape)))


def rounded(method: str) -> Method:
    """A quantiser at the most bits that fit; a symmetric grid, as the demo model itself lies on an asymmetric one."""

    def make(layer: Layer, fraction: float) -> Any:
        from tersor.pipeline.calibrate import with_group_size

        rows, columns = layer.shape
        group = with_group_size((method, {}), columns)[1]["group_size"]
        scales = 1 if group == -1 else columns // group
        sizes = ((bits, rows * (-(-bits * columns // 8) + 2 * scales)) for bits in range(8, 0, -1))
        bits = next(bits for bits, nbytes in sizes if nbytes <= layer.budget(fraction))
        return layer.by(method, bits=bits, scheme="symmetric", **({"act_order": True} if method == "gptq" else {}))

    return make


def pruned(method: str) -> Method:
    """A pruner that keeps as many 16-bit values as fit beside a bit an entry."""

    def make(layer: Layer, fraction: float) -> Any:
        rows, columns = layer.shape
        kept = (layer.budget(fraction) - rows * -(-columns // 8)) // 2
        # Less half a value a row: methods round the number that they keep, some in every row.
        return layer.by(method, sparsity=1 - (kept / rows - 0.5) / columns)

    return make


def two_of_four(layer: Layer, fraction: float) -> Any:
    """Half of every four, in 16 bits where that fits, else in 8."""
    whole = 16 * fraction > 8 + 1.0  # two values of 16 bits and two positions, for four weights, are 8.75 to 9 bits a weight
    return layer.by("sparsegpt", keep_n=2, of_m=4, **({} if whole else {"bits": 8, "scheme": "symmetric"}))


def low_rank(method: str, extra: int = 0) -> Method:
    """Factors in float16, ``extra`` bytes a row left for what else the method stores."""

    def make(layer: Layer, fraction: float) -> Any:
        return layer.by(method, rank=layer.rank(layer.budget(fraction) - extra * layer.shape[0]))

    return make


def tensor_network(layer: Layer, fraction: float) -> Any:
    """Two sites, refitted to the inputs once."""
    return layer.by("tensor_network", keep=fraction, refit_sweeps=1)


def dictionary(layer: Layer, fraction: float) -> Any:
    """Sparse codes on atoms of the layer's own."""
    return layer.by("cospadi", keep=fraction, iterations=layer.sweeps)


def compensated(layer: Layer, fraction: float) -> Any:
    """A 3-bit base and the correction that the rest of the bytes pay for."""
    from tersor.layerwise import compensate

    base = layer.once("base", lambda: layer.by("gptq", bits=EORA_BITS, scheme="symmetric", act_order=True))
    return compensate(layer.matrix, base, layer.stats, rank=layer.rank(layer.budget(fraction) - base.nbytes))


def stacked(layer: Layer, fraction: float) -> Any:
    """As many residual blocks as fit in this layer alone."""
    most = int(16 * max(FRACTIONS) / BLOCK_BITS) + 1
    stack = layer.once("stack", lambda: layer.by("bitstack", blocks=most))
    return stack.prefix(max(count for count in range(1, most + 1) if stack.prefix(count).nbytes <= layer.budget(fraction) or count == 1))


METHODS: dict[str, Method] = {
    "rtn": rounded("rtn"), "gptq": rounded("gptq"),
    "wanda": pruned("wanda"), "sparsegpt": pruned("sparsegpt"), "sparsegpt 2:4": two_of_four,
    "svd": low_rank("svd"), "whitened_svd": low_rank("whitened_svd"), "lord": low_rank("lord", extra=2), "tensor_network": tensor_network,
    "cospadi": dictionary, "bitstack": stacked, f"eora on {EORA_BITS}-bit gptq": compensated,
}  # fmt: skip
