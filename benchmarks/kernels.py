"""Products with packed weights, by themselves: tersor's CPU kernels against torch in float32, in bfloat16 and with its own 4-bit kernel.

Shapes are those of SmolLM2-135M and a square one of a large model, for 1, 4, 16 and 128 rows of activations.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import common
import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.packing import pack_bits
from tersor.kernels.quantized import quantized_linear
from tersor.kernels.sparse import masked_linear, pattern_linear

GROUP = 64
BLOCK = {(576, 576): 2, (192, 576): 2, (1536, 576): 2, (576, 1536): 1}  # layers of a block of SmolLM2-135M by shape
HEAD = (49152, 576)
LARGE = (4096, 4096)
# Layers of a model are read from memory one after another, so copies of a layer are used in turns until they leave the caches.
FOOTPRINT = 1 << 26

Call = Callable[[int], Tensor]


def grid(rows: int, columns: int, bits: int) -> tuple[dict[str, Any], Tensor]:
    """A random symmetric grid: the arguments of the kernel and the dense float32 weight."""
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    scale = (torch.rand(rows, columns // GROUP) + 0.5).half()
    dense = ((codes.float() - 2 ** (bits - 1)).unflatten(1, (-1, GROUP)) * scale.float().unsqueeze(2)).flatten(1)
    packed = {"codes": pack_bits(codes, bits), "scale": scale, "zero": None, "bits": bits, "scheme": "symmetric"}
    return {**packed, "group_size": GROUP, "in_features": columns}, dense


def in_turns(copies: list[Any], product: Callable[[Any], Tensor]) -> Call:
    """A call that multiplies with copy ``i`` of a weight."""
    return lambda i: product(copies[i % len(copies)])


def copied(rows: int, columns: int, *values: Any) -> list[tuple[Any, ...]]:
    """So many copies of the tensors of one weight that its float32 form would leave the caches."""

    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: copy(part) for key, part in value.items()}
        return value.clone() if isinstance(value, Tensor) else value

    return [tuple(copy(value) for value in values) for _ in range(max(1, FOOTPRINT // (4 * rows * columns)))]


def torch_int4(rows: int, columns: int, x: Tensor) -> Call:
    """torch's own packed 4-bit kernel, whose fast path takes bfloat16."""
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(columns // GROUP, rows, 2).bfloat16()
    copies = copied(rows, columns, packed, scales)
    return in_turns(copies, lambda weight: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight[0], GROUP, weight[1]))


def quantised_calls(rows: int, columns: int, m: int, bits: int) -> dict[str, Call]:
    """Every way to multiply ``m`` rows with a quantised weight, by the name of its column."""
    arguments, dense = grid(rows, columns, bits)
    ours, float32, bfloat16 = (copied(rows, columns, weight) for weight in (arguments, dense, dense.bfloat16()))
    x = torch.randn(m, columns)
    half = x.bfloat16()
    calls = {
        "tersor float32": in_turns(ours, lambda weight: quantized_linear(x, **weight[0])),
        "tersor bfloat16": in_turns(ours, lambda weight: quantized_linear(half, **weight[0])),
        "torch float32": in_turns(float32, lambda weight: F.linear(x, weight[0])),
        "torch bfloat16": in_turns(bfloat16, lambda weight: F.linear(half, weight[0])),
    }
    return calls | ({"torch int4 bfloat16": torch_int4(rows, columns, half)} if bits == 4 else {})


def sparse_calls(rows: int, columns: int, m: int, kind: str) -> dict[str, Call]:
    """Every way to multiply ``m`` rows with a half-pruned weight in float16."""
    table = torch.tensor(sorted(sum(1 << column for column in chosen) for chosen in combinations(range(4), 2)))
    numbers = torch.randint(0, 6, (rows, columns // 4))
    mask = ((table[numbers].unsqueeze(2) >> torch.arange(4)) & 1).bool().flatten(1)
    if kind == "bit map":
        mask = torch.rand(rows, columns) < 0.5
    values, dense = torch.randn(int(mask.sum())).half(), torch.zeros(rows, columns)
    dense[mask] = values.float()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    x = torch.randn(m, columns)
    half = x.bfloat16()

    def ours(x: Tensor, weight: tuple[Any, ...]) -> Tensor:
        where, values, starts = weight
        if kind == "bit map":
            return masked_linear(x, where, values, starts, in_features=columns)
        return pattern_linear(x, where, values, starts, table, of_m=4, in_features=columns)

    where = pack_bits(mask.to(torch.uint8), 1) if kind == "bit map" else pack_bits(numbers.to(torch.uint8), 3)
    stored, float32, bfloat16 = (copied(rows, columns, *weight) for weight in ((where, values, starts), (dense,), (dense.bfloat16(),)))
    return {
        "tersor float32": in_turns(stored, lambda weight: ours(x, weight)),
        "tersor bfloat16": in_turns(stored, lambda weight: ours(half, weight)),
        "torch float32": in_turns(float32, lambda weight: F.linear(x, weight[0])),
        "torch bfloat16": in_turns(bfloat16, lambda weight: F.linear(half, weight[0])),
    }


def clock(threads: int) -> float:
    """Processor time of one thread, which a busy machine does not lengthen; wall time of several."""
    return time.process_time() if threads == 1 else time.perf_counter()


def timed(call: Call, threads: int, loops: int) -> float:
    """Microseconds of a call, the mean over a loop."""
    began = clock(threads)
    for i in range(loops):
        call(i)
    return (clock(threads) - began) / loops * 1e6


def measure(calls: dict[str, Call], threads: int, repeats: int, work: int) -> dict[str, float]:
    """The median time of every call in microseconds, measured in turns."""
    loops = max(1, min(200, 30_000_000 // work))
    for call in calls.values():
        timed(call, threads, 2)
    samples = common.interleaved(repeats, {name: lambda call=call: timed(call, threads, loops) for name, call in calls.items()})
    return {name: common.median(values) for name, values in samples.items()}


def cases(quick: bool) -> Iterator[tuple[str, tuple[int, int], int, Callable[[int, int, int], dict[str, Call]]]]:
    """Weight, shape, rows of x, and what makes the calls."""
    shapes = [(192, 576)] if quick else [*BLOCK, HEAD, LARGE]
    for shape in shapes:
        for m in (1, 4, 16, 128):
            yield "4 bits", shape, m, lambda *size: quantised_calls(*size, bits=4)
    for shape in shapes[-1:] if quick else [(1536, 576), LARGE]:
        for bits in (2, 3, 8):
            for m in (1, 16):
                yield f"{bits} bits", shape, m, lambda *size, bits=bits: quantised_calls(*size, bits=bits)
        for kind in ("bit map", "2:4"):
            for m in (1, 16):
                yield f"50 % sparse, {kind}", shape, m, lambda *size, kind=kind: sparse_calls(*size, kind=kind)


def row_of(weight: str, shape: tuple[int, int], m: int, threads: int, times: dict[str, float]) -> dict[str, Any]:
    """A row of the table: times, and how many times faster ours is."""
    ratios = {
        "float32 / ours": times["torch float32"] / times["tersor float32"],
        "bfloat16 / ours": times["torch bfloat16"] / times["tersor bfloat16"],
    }
    setting = {"weight": weight, "shape": f"{shape[0]}x{shape[1]}", "rows of x": m, "threads": threads}
    return {**setting, **{f"{name}, us": value for name, value in times.items()}, **ratios}


def block_time(rows: list[dict[str, Any]], column: str, m: int, threads: int, head: bool) -> float:
    """Time of the linear layers of SmolLM2-135M, 30 blocks and perhaps the head, from the rows of their shapes."""
    setting = {"weight": "4 bits", "rows of x": m, "threads": threads}
    times = {row["shape"]: row[f"{column}, us"] for row in rows if setting.items() <= row.items()}
    total = 30 * sum(count * times[f"{shape[0]}x{shape[1]}"] for shape, count in BLOCK.items())
    return float(total + (times[f"{HEAD[0]}x{HEAD[1]}"] if head else 0))


def claims(rows: list[dict[str, Any]], overhead: float) -> Iterator[common.Claim]:
    """What the kernels are for."""
    for threads in sorted({row["threads"] for row in rows}):
        threaded = f"{threads} thread{'s' if threads > 1 else ''}"
        for kind in ("float32", "bfloat16"):
            ours, dense = (block_time(rows, f"{who} {kind}", 1, threads, True) for who in ("tersor", "torch"))
            decoding = f"decoding one token, all 4-bit layers of SmolLM2-135M, torch {kind} / ours, {threaded}"
            yield common.Claim(decoding, dense / ours, 2.0, True)
            ours, dense = (block_time(rows, f"{who} {kind}", 128, threads, False) for who in ("tersor", "torch"))
            prefilling = f"prefilling 128 tokens, its blocks, ours / torch {kind}, {threaded}"
            yield common.Claim(prefilling, ours / dense, 1.1)
    yield common.Claim("time of a call on a weight of 4x64, us", overhead, 10.0)


def overhead(repeats: int) -> float:
    """Microseconds of a call that has next to nothing to do."""
    arguments, _ = grid(4, GROUP, 4)
    x = torch.randn(1, GROUP)
    return common.median(timed(lambda _: quantized_linear(x, **arguments), 1, 2000) for _ in range(repeats))


def run(flags: argparse.Namespace) -> int:
    """Measure every case with one thread and with all."""
    session = common.Session("kernels", flags)
    if hasattr(os, "getloadavg"):
        session.notes.append(f"Processes that were waiting for a processor when it began: {os.getloadavg()[0]:.1f}.")
    torch.manual_seed(0)
    for threads in (1,) if flags.quick else sorted({1, common.cores()}):
        torch.set_num_threads(threads)
        for weight, shape, m, make in cases(flags.quick):
            times = measure(make(*shape, m), threads, session.repeats, m * shape[0] * shape[1])
            session.rows.append(row_of(weight, shape, m, threads, times))
            session.say(f"{weight}, {shape[0]}x{shape[1]}, {m} rows, {threads} threads")
    torch.set_num_threads(1)
    if not flags.quick:
        session.claims += claims(session.rows, overhead(session.repeats))
    session.data.append("random weights and activations")
    session.notes += [
        "Medians of interleaved repeats in one process; one thread by its processor time, several by wall time.",
        f"Copies of a layer of at least {FOOTPRINT >> 20} MiB in float32 are used in turns, as the layers of a model are.",
    ]
    return session.finish()


if __name__ == "__main__":
    sys.exit(run(common.parser(__doc__, repeats=7).parse_args()))
