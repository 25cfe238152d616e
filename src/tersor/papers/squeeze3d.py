"""Squeeze3D: shapes as the codes of a generator that was never trained to compress, reached from an encoder that knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.papers.frame import Paper, Result, Row, measured

if TYPE_CHECKING:
    from torch import Tensor

PAPER = Paper(
    key="squeeze3d",
    claim="Bridged latents of shapes that a generator makes, at 8 bits a number, decode to less than 1.5 times the error of the "
    "generator's own best latents and to less than half that of the nearest shape of its training, in a tenth of Draco's bytes.",
    where="tersor.coding.mesh.BridgeCodec, LatentBridge, synthesise_pairs, chamfer",
)

SEEDS = (0, 1, 2)
CODE, BITS = 24, 8
# Places an axis of the grids that surfaces are drawn from.
RESOLUTION = 24
# What the errors may be, in floors and in errors of the nearest training shape; and Draco's bytes over ours.
FLOORS, NEAREST, TIMES = 1.5, 0.5, 10.0
APART = (0.0, 1.0)
DRACO_BITS = (6, 8, 11, 14)
# Seeds of held-out latents and shapes begin here.
_FRESH, _FRESH_SHAPES = 500_000, 9_000_000
_SAMPLES = 1500


@dataclass(frozen=True)
class Size:
    """How much work the experiment spends."""

    steps: int
    shapes: int
    pairs: int
    bridge: int
    held_out: int
    swept: int
    codes: tuple[int, ...]
    fit: int


FULL = Size(1000, 224, 900, 400, 8, 4, (1, 4, 12, 24), 80)
QUICK = Size(60, 24, 64, 60, 3, 2, (1, 8), 20)


@dataclass(frozen=True)
class Target:
    """A shape to send: a mesh in its normal pose, and points and normals of it."""

    mesh: Any
    points: Tensor
    normals: Tensor


def run(quick: bool) -> Result:
    """Train both networks once; bridge them with three seeds; send held-out shapes of the generator, of its family, and of neither."""
    size = QUICK if quick else FULL
    job, best = _networks(size)
    targets = _generated(job, size.held_out)
    rows = list(measured(_baselines(job, targets, size)))
    for seed in SEEDS:
        inputs, outputs = _pairs(job, size, seed)
        rows += measured(_bridges(job, inputs, outputs, targets, size, seed))
    codec = job.module.codec()
    codec.generator.resolution = RESOLUTION
    rows += measured(_elsewhere(codec, size))
    rows += measured(_draco(targets))
    margin, said = _margin(rows)
    return Result(
        rows, "the generator's floor, the nearest training shape, and Draco's smallest file", margin, SEEDS, margin > 0,
        ("made-up unions of superquadrics, boxes, tori and capsules", *(path.name for path in _files())), [*said, *_notes(rows), best],
    )  # fmt: skip


def _networks(size: Size) -> tuple[Any, str]:
    """Encoder, generator and a first bridge."""
    from tersor.coding.mesh import MeshJob, MeshSettings
    from tersor.coding.training import run_job

    job: Any = MeshJob(MeshSettings(code=CODE, bits=BITS, shapes=size.shapes, pairs=size.pairs), size.steps)
    run_job(job)
    count = {name: sum(one.numel() for one in getattr(job.module, name).parameters()) for name in ("encoder", "bridge", "generator")}
    return job, f"parameters: {', '.join(f'{name} {value:,}' for name, value in count.items())}; whoever decodes needs bridge and generator"


def _pairs(job: Any, size: Size, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of another seed, no generated shape of which is among the held-out ones."""
    from tersor.coding.mesh import FieldGenerator, PointEncoder, synthesise_pairs

    if seed == 0:
        return job.made_pairs()
    models = job.module
    return synthesise_pairs(FieldGenerator(models.generator, 20), PointEncoder(models.encoder), size.pairs, seed)


def _target(mesh: Any, seed: int) -> Target:
    from tersor.coding.mesh import sample

    points, normals = sample(mesh, _SAMPLES, seed)
    return Target(mesh, points, normals)


def _generated(job: Any, count: int) -> list[Target]:
    """Held-out shapes that the generator makes."""
    import torch

    from tersor.coding.mesh import FieldGenerator

    generator = FieldGenerator(job.module.generator, RESOLUTION)
    found: list[Target] = []
    for seed in range(_FRESH, _FRESH + 4 * count):
        mesh = generator.decode(torch.randn(generator.network.latent, generator=torch.Generator().manual_seed(seed)))
        if len(mesh.faces) and len(found) < count:
            found.append(_target(mesh, seed))
    return found


def _errors(targets: list[Target], meshes: list[Any]) -> Row:
    """Mean distance and normal consistency of what came back."""
    from tersor.coding.mesh import chamfer, normal_consistency, sample

    distances, normals = [], []
    for target, mesh in zip(targets, meshes, strict=True):
        points, directions = sample(mesh, _SAMPLES, 1)
        distances.append(chamfer(target.points, points))
        normals.append(normal_consistency(target.points, target.normals, points, directions))
    return {"chamfer": sum(distances) / len(distances), "normals": sum(normals) / len(normals)}


def _baselines(job: Any, targets: list[Target], size: Size) -> Iterator[Row]:
    """Two samples of one surface; the generator's best latents; the nearest training shape; a sphere."""
    from tersor.coding.mesh import FieldGenerator, draw_shape, surface

    yield {"method": "same surface, sampled twice", "shapes": "generated", **_errors(targets, [target.mesh for target in targets])}
    generator = FieldGenerator(job.module.generator, RESOLUTION)
    fitted = [generator.decode(_fit(job, target, size.fit)) for target in targets]
    yield {"method": "floor: latent fitted to the shape", "shapes": "generated", **_errors(targets, fitted)}
    meshes = [draw_shape(1_000_000 + index).mesh() for index in range(min(size.shapes, 128))]
    known = [_target(mesh, 0).points[:300] for mesh in meshes]
    nearest = [_nearest(target, known) for target in targets]
    yield {"method": "nearest training shape", "shapes": "generated", **_errors(targets, [meshes[index] for index in nearest])}
    sphere = surface(lambda places: places.norm(dim=1) - 0.6, RESOLUTION)
    yield {"method": "sphere", "shapes": "generated", **_errors(targets, [sphere] * len(targets))}


def _nearest(target: Target, known: list[Tensor]) -> int:
    from tersor.coding.mesh import chamfer

    distances = [chamfer(target.points[:300], points) for points in known]
    return distances.index(min(distances))


def _fit(job: Any, target: Target, steps: int) -> Tensor:
    """The latent whose field is zero on the points and as far as the true surface beside them, by direct optimisation."""
    import torch

    from tersor.coding.mesh.geometry import nearest

    random = torch.Generator().manual_seed(0)
    near = target.points[:600] + 0.08 * target.normals[:600] * torch.randn(600, 1, generator=random)
    places = torch.cat([target.points[:300], near])
    distance, index = nearest(places, target.points)
    side = ((places - target.points[index]) * target.normals[index]).sum(1)
    wanted = distance * torch.sign(side)
    wanted[:300] = 0
    latent = torch.zeros(1, job.module.generator.latent, requires_grad=True)
    optimizer = torch.optim.Adam([latent], 0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        loss = (job.module.generator(latent, places)[0] - wanted).abs().mean() + 1e-4 * latent.square().mean()
        loss.backward()
        optimizer.step()
    return latent.detach()[0]


def _bridges(job: Any, inputs: Tensor, outputs: Tensor, targets: list[Target], size: Size, seed: int) -> Iterator[Row]:
    """Bridges of every code size, and of the largest without the term that keeps codes apart; quantised, coded and decoded from bytes."""
    from tersor.coding.mesh import LatentBridge, fit_bridge

    settings = [(code, APART[1]) for code in size.codes] + [(size.codes[-1], APART[0])]
    held = max(len(inputs) // 10, 2)
    for code, apart in settings:
        bridge = LatentBridge(inputs.shape[1], code, outputs.shape[1])
        _draw(bridge, seed)
        fit_bridge(bridge, inputs[held:], outputs[held:], steps=size.bridge, apart=apart, seed=seed)
        main = code == size.codes[-1] and apart == APART[1]
        chosen = targets if main else targets[: size.swept]
        for bits in (8, 6, 4) if main and not seed else (8,):
            yield {
                "method": "bridge" if apart else "bridge, codes not kept apart", "shapes": "generated", "code": code, "bits": bits,
                "seed": seed, **_sent(job, bridge, inputs, chosen, bits), **_held_out(bridge, inputs[:held], outputs[:held]),
            }  # fmt: skip


def _draw(bridge: Any, seed: int) -> None:
    from tersor.coding.mesh.training import draw_linear

    draw_linear(bridge, 100 + seed)


def _held_out(bridge: Any, inputs: Tensor, outputs: Tensor) -> Row:
    """Squared error of standardised latents, and how alike codes of different shapes are."""
    import torch

    with torch.no_grad():
        codes = bridge.code(inputs)
        unit = torch.nn.functional.normalize(codes, dim=1)
        alike = (unit @ unit.T).abs()[~torch.eye(len(codes), dtype=torch.bool)].mean()
        return {"latent_error": float(bridge.loss(inputs, outputs)[0]), "alike": float(alike)}


def _sent(job: Any, bridge: Any, inputs: Tensor, targets: list[Target], bits: int) -> Row:
    """What comes back from the bytes, how many there are, and what codes of other shapes give instead."""
    import torch

    from tersor.coding.entropy import Container
    from tersor.coding.mesh import BridgeCodec, CodeQuantiser, FieldGenerator, PointEncoder

    quantiser = CodeQuantiser(bridge.d_code, bits)
    with torch.no_grad():
        quantiser.fit(bridge.code(inputs))
    codec = BridgeCodec(PointEncoder(job.module.encoder), bridge, FieldGenerator(job.module.generator, RESOLUTION), quantiser)
    files = [codec.compress(target.mesh) for target in targets]
    back = [codec.decompress(file) for file in files]
    payload = [len(Container.from_bytes(file).streams[1]) for file in files]
    shuffled = _errors(targets, [*back[1:], back[0]])["chamfer"]
    return {
        **_errors(targets, back), "bytes": sum(payload) / len(payload), "bytes_of_file": sum(map(len, files)) / len(files),
        "bytes_in_float32": 4 * bridge.d_code, "chamfer_of_shuffled_codes": shuffled,
    }  # fmt: skip


def _files() -> list[Path]:
    from tersor.data import folder

    return sorted(folder("meshes").glob("*.obj"))


def _elsewhere(codec: Any, size: Size) -> Iterator[Row]:
    """Shapes of the family that no network saw, and real meshes, in their normal pose; beside Draco on the latter."""
    from tersor.coding.mesh import draw_shape, read_geometry
    from tersor.coding.mesh.geometry import pose

    family = [_target(draw_shape(_FRESH_SHAPES + index).mesh(), index) for index in range(size.held_out)]
    yield {"method": "bridge", "shapes": "family, not seen", "code": CODE, "bits": BITS, **_through(codec, family)}
    real = []
    for path in _files():
        mesh = read_geometry(path.read_bytes())
        real.append(_target(mesh.moved(*pose(mesh)), 0))
        row = _through(codec, real[-1:])
        yield {"method": "bridge", "shapes": path.name, "code": CODE, "bits": BITS, "bytes_of_obj": path.stat().st_size, **row}
    yield from _draco(real, "real meshes")


def _through(codec: Any, targets: list[Target]) -> Row:
    files = [codec.compress(target.mesh) for target in targets]
    return {**_errors(targets, [codec.decompress(file) for file in files]), "bytes_of_file": sum(map(len, files)) / len(files)}


def _draco(targets: list[Target], shapes: str = "generated") -> Iterator[Row]:
    """The same meshes through Draco, at several bits a coordinate."""
    import numpy as np

    from tersor.coding.mesh import Geometry

    if find_spec("DracoPy") is None:
        return
    import DracoPy

    for bits in DRACO_BITS:
        files = [
            DracoPy.encode(
                one.mesh.vertices.astype(np.float32), one.mesh.faces.astype(np.uint32), quantization_bits=bits, compression_level=10
            )
            for one in targets
        ]
        back = [DracoPy.decode(file) for file in files]
        meshes = [
            Geometry(np.asarray(one.points, np.float64).reshape(-1, 3), np.asarray(one.faces, np.int64).reshape(-1, 3)) for one in back
        ]
        size = sum(map(len, files)) / len(files)
        yield {"method": "draco", "shapes": shapes, "bits": bits, **_errors(targets, meshes), "bytes": size, "bytes_of_file": size}


def _of(rows: list[Row], method: str, **named: Any) -> list[Row]:
    return [row for row in rows if row["method"].startswith(method) and all(row.get(key) == value for key, value in named.items())]


def _ours(rows: list[Row]) -> list[Row]:
    largest = max(row["code"] for row in rows if "seed" in row)
    return [row for row in _of(rows, "bridge", code=largest, bits=8, shapes="generated") if row["method"] == "bridge"]


def _margin(rows: list[Row]) -> tuple[float, list[str]]:
    """The smallest of the margins, each in the unit of its own bound, at the worst seed."""
    ours = _ours(rows)
    worst = max(row["chamfer"] for row in ours)
    (floor,), (nearest,) = _of(rows, "floor"), _of(rows, "nearest")
    parts = {
        "floor": FLOORS - worst / floor["chamfer"],
        "nearest training shape": NEAREST - worst / nearest["chamfer"],
    }
    draco = _of(rows, "draco", shapes="generated")
    if draco:
        smallest = min(row["bytes_of_file"] for row in draco)
        parts["draco's bytes"] = smallest / max(row["bytes_of_file"] for row in ours) / TIMES - 1
    said = f"error at the worst seed {worst:.4f}, the floor {floor['chamfer']:.4f}, the nearest training shape {nearest['chamfer']:.4f}"
    skipped = [] if draco else ["skipped: Draco, as DracoPy is not installed"]
    return min(parts.values()), [said + "; margins: " + ", ".join(f"{name} {value:+.2f}" for name, value in parts.items()), *skipped]


def _notes(rows: list[Row]) -> list[str]:
    ours = _ours(rows)
    codes = sorted({row["code"] for row in rows if "seed" in row})
    sweep = {code: _mean(_of(rows, "bridge", code=code, bits=8, shapes="generated"), "chamfer", "bridge") for code in codes}
    pairs = {name: _mean(_of(rows, name, code=codes[-1], bits=8), "alike", name) for name in ("bridge", "bridge, codes not kept apart")}
    errors = {name: _mean(_of(rows, name, code=codes[-1], bits=8), "latent_error", name) for name in pairs}
    family, real = _of(rows, "bridge", shapes="family, not seen"), [row for row in _of(rows, "bridge") if row["shapes"].endswith(".obj")]
    return [
        "error by numbers of the code: " + ", ".join(f"{code}: {value:.4f}" for code, value in sweep.items()),
        f"the cut is real: codes of other shapes give {_mean(ours, 'chamfer_of_shuffled_codes', 'bridge'):.4f}",
        f"codes of different shapes are alike by {pairs['bridge']:.2f} with the term that keeps them apart and "
        f"{pairs['bridge, codes not kept apart']:.2f} without; the error of latents is {errors['bridge']:.3f} and "
        f"{errors['bridge, codes not kept apart']:.3f}",
        f"the paper's limit: {family[0]['chamfer']:.4f} on shapes of the family that no network saw, and "
        f"{sum(row['chamfer'] for row in real) / max(len(real), 1):.4f} on {len(real)} real meshes, which are unlike it",
        "Draco keeps the mesh and its error falls with its bits; the bridge keeps what the generator can draw of it",
    ]


def _mean(rows: list[Row], key: str, method: str) -> float:
    values = [row[key] for row in rows if row["method"] == method and key in row]
    return sum(values) / max(len(values), 1)
