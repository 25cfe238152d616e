"""Meshes as codes of a generator: distances and normals against brute force, the cut of the bridge, bytes, damage."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from tersor import coding
from tersor.coding.entropy import Container
from tersor.coding.errors import CorruptStream, ModelMismatch
from tersor.coding.mesh import (
    BridgeCodec,
    CodeQuantiser,
    Geometry,
    LatentBridge,
    MeshJob,
    MeshSettings,
    ShapeEncoder,
    ShapeModels,
    chamfer,
    draw_shape,
    fit_bridge,
    normal_consistency,
    read_geometry,
    sample,
    shape_set,
    surface,
    write_obj,
)
from tersor.coding.mesh.training import load, start
from tersor.coding.training import load_codec, run_job, save_codec
from tersor.errors import InvalidArgument

CUBE = b"""# a cube of quadrangles
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 1
v 1 0 1
v 1 1 1
v 0 1 1
f 1 4 3 2
f 5 6 7 8
f 1 2 6 5
f 2 3 7 6
f 3 4 8 7
f 4 1 5 8
"""


def sphere(resolution: int = 24) -> Geometry:
    return surface(lambda places: places.norm(dim=1) - 0.7, resolution)


@pytest.fixture(scope="module")
def job() -> MeshJob:
    """A training so short that its shapes are blobs, and so small that it takes seconds."""
    job = MeshJob(MeshSettings(shapes=24, pairs=48, code=6), 60)
    run_job(job)
    return job


@pytest.fixture(scope="module")
def codec(job: MeshJob) -> BridgeCodec:
    return load(job.config, job.module.state_dict(), "f" * 64)


@pytest.mark.parametrize("seed", range(3))
def test_chamfer_and_normals_are_those_of_brute_force(seed: int):
    random = torch.Generator().manual_seed(seed)
    a, b = torch.randn(1500, 3, generator=random), torch.randn(700, 3, generator=random) + 0.2
    na, nb = (torch.nn.functional.normalize(torch.randn(one.shape, generator=random), dim=1) for one in (a, b))
    full = (a[:, None].double() - b[None].double()).square().sum(2).sqrt()
    assert chamfer(a, b) == pytest.approx(float(full.min(1).values.mean() + full.min(0).values.mean()) / 2, rel=1e-5)
    forth = (na * nb[full.argmin(1)]).sum(1).abs().mean()
    back = (nb * na[full.argmin(0)]).sum(1).abs().mean()
    assert normal_consistency(a, na, b, nb) == pytest.approx(float(forth + back) / 2, rel=1e-5)
    assert chamfer(a, b) == chamfer(b, a)
    assert chamfer(a, a) == 0


def test_chamfer_of_a_shifted_line_is_the_shift():
    line = torch.arange(10.0)[:, None] * torch.tensor([1.0, 0, 0])
    assert chamfer(line, line + torch.tensor([0, 0.25, 0])) == pytest.approx(0.25)


def test_samples_lie_on_the_surface_with_its_normals_and_uniformly():
    mesh = sphere(32)
    points, normals = sample(mesh, 4000, 0)
    assert (points.norm(dim=1) - 0.7).abs().max() < 5e-3
    # Outwards, and as unit vectors.
    assert torch.nn.functional.cosine_similarity(points, normals).min() > 0.95
    assert torch.allclose(normals.norm(dim=1), torch.ones(4000), atol=1e-5)
    assert points.mean(0).abs().max() < 0.03
    assert torch.equal(points, sample(mesh, 4000, 0)[0])
    assert not torch.equal(points, sample(mesh, 4000, 1)[0])


def test_an_obj_file_is_read_as_it_was_written_and_polygons_are_cut():
    mesh = sphere(12)
    found = read_geometry(write_obj(mesh))
    assert np.allclose(found.vertices, mesh.vertices, atol=1e-6)
    assert np.array_equal(found.faces, mesh.faces)
    cube = read_geometry(CUBE)
    assert len(cube.faces) == 12
    corners = cube.vertices[cube.faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    assert areas.sum() == pytest.approx(6)
    cloud = read_geometry(b"v 0 0 0\nv 1 2 3\n")
    assert cloud.is_cloud
    assert cloud.vertices.tolist() == [[0, 0, 0], [1, 2, 3]]


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"v 1 2\n", b"v 1 2 nan\nv 0 0 0\n", b"v 0 0 0\nf 1 2 3\n", b"hello"])
def test_what_is_no_geometry_is_refused(data: bytes):
    with pytest.raises(InvalidArgument):
        read_geometry(data)


@pytest.mark.parametrize("seed", range(12))
def test_drawn_shapes_fill_the_ball_and_know_how_far_they_are(seed: int):
    shape = draw_shape(seed)
    mesh = shape.mesh(40)
    assert 0.85 < np.linalg.norm(mesh.vertices, axis=1).max() < 1.05
    assert np.abs(mesh.vertices).max() < 0.97
    # A signed distance grows no faster than the place moves; that of superquadrics is one to first order only, close to the surface.
    points, _ = sample(mesh, 300, 0)
    assert shape.distance(points).abs().max() < 0.05
    random = torch.Generator().manual_seed(seed)
    step = 1e-3 * torch.nn.functional.normalize(torch.randn(points.shape, generator=random), dim=1)
    assert (shape.distance(points + step) - shape.distance(points)).abs().max() < 1.3e-3


def test_shapes_follow_from_their_seeds():
    first, again, other = (shape_set(seed, 2, points=64, queries=32, side=4) for seed in (5, 5, 7))
    assert torch.equal(first.distances, again.distances)
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)


def test_the_encoder_ignores_the_order_of_points():
    encoder = ShapeEncoder(16)
    points = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(encoder(points), encoder(points.flip(1)), atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "wide", "deep"])
def test_nothing_goes_around_the_code(kind):
    bridge = LatentBridge(20, 5, 7, kind).eval()
    x = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    code = bridge.code(x).detach()
    assert code.shape == (9, 5)
    again = bridge.decode(code).detach()
    assert again.shape == (9, 7)
    assert torch.equal(bridge.decode(torch.zeros(9, 5)), bridge.decode(torch.zeros(9, 5)))
    assert float(bridge.decode(torch.zeros(9, 5)).detach().std(0).max()) < 1e-6 < float(again.std(0).max())


def test_a_bridge_learns_a_map_that_a_code_of_its_dimension_can_carry_and_no_smaller_one():
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(400, 3, generator=random)
    inputs, outputs = hidden @ torch.randn(3, 12, generator=random), hidden @ torch.randn(3, 8, generator=random)
    errors = {}
    for size in (1, 3):
        bridge = LatentBridge(12, size, 8, width=32)
        fit_bridge(bridge, inputs[:300], outputs[:300], steps=250, learning_rate=5e-3, apart=0.0)
        with torch.no_grad():
            errors[size] = float(bridge.loss(inputs[300:], outputs[300:])[0])
    assert errors[3] < 0.1 < 0.3 < errors[1]


def test_codes_are_kept_apart_by_the_second_term():
    random = torch.Generator().manual_seed(1)
    inputs, outputs = torch.randn(200, 16, generator=random), torch.randn(200, 4, generator=random)
    spread = {}
    for apart in (0.0, 1.0):
        bridge = LatentBridge(16, 16, 4, width=32)
        for layer in bridge.modules():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.constant_(layer.bias, 0.5)
        fit_bridge(bridge, inputs, outputs, steps=100, apart=apart)
        with torch.no_grad():
            unit = torch.nn.functional.normalize(bridge.code(inputs), dim=1)
        spread[apart] = float((unit @ unit.T - torch.eye(200)).abs().mean())
    assert spread[1.0] < spread[0.0]


@pytest.mark.parametrize("bits", [6, 8])
def test_codes_cost_what_their_tables_say_and_come_back_as_they_were_rounded(bits: int):
    random = torch.Generator().manual_seed(0)
    codes = torch.randn(500, 24, generator=random) * torch.linspace(0.1, 10, 24) + 3
    quantiser = CodeQuantiser(24, bits)
    quantiser.fit(codes)
    fresh = torch.randn(100, 24, generator=random) * torch.linspace(0.1, 10, 24) + 3
    fresh[0, 0] = 1e4
    steps = quantiser.quantise(fresh)
    streams = [quantiser.compress(code) for code in fresh]
    for code, row, stream in zip(fresh, steps, streams, strict=True):
        assert torch.equal(quantiser.decompress(stream), quantiser.dequantise(row))
        assert (quantiser.decompress(stream) - code).abs().max() <= (quantiser.step * 0.5001).max() + 1e-3
    bits_real, ideal = 8 * sum(map(len, streams[1:])), quantiser.ideal_bits(steps[1:])
    # One byte of length and at most a byte to close each stream.
    assert ideal < bits_real < 1.03 * ideal + 16 * 99


def test_every_seed_gives_its_own_training_and_the_same_each_time():
    losses = []
    for seed in (0, 0, 1):
        job = MeshJob(MeshSettings(shapes=4, pairs=2, code=4), 4, seed)
        losses.append(float(job.loss(0).detach()))
    assert losses[0] == losses[1] != losses[2]


def test_whitened_latents_of_known_shapes_are_normal_and_give_the_same_fields():
    models = ShapeModels(MeshSettings(latent=6))
    shapes = shape_set(40, 30, points=16, queries=64)
    with torch.no_grad():
        raw, _ = models.guide(shapes.coarse).chunk(2, 1)
        before = models.generator(raw, shapes.queries)
        values, vectors = torch.linalg.eigh(torch.cov(raw.T).double())
        white = ((raw - raw.mean(0)) @ vectors.float()) / values.sqrt().float()
        models.whiten(shapes)
        assert torch.allclose(models.generator(white, shapes.queries), before, atol=1e-3)
    assert torch.allclose(torch.cov(white.T), torch.eye(6), atol=1e-3)


def test_a_mesh_is_decoded_from_its_bytes_alone(codec: BridgeCodec):
    mesh = read_geometry(CUBE)
    data = codec.compress(mesh)
    assert len(Container.from_bytes(data).streams[1]) < 32
    found = codec.decompress(data)
    centre, scale = mesh.vertices.mean(0), 0.9 / np.sqrt(0.75)
    wanted = codec.reconstruct(mesh.moved(centre, scale))
    assert np.allclose((found.vertices - centre) * scale, wanted.vertices, atol=1e-5)
    assert np.array_equal(found.faces, wanted.faces)
    assert codec.compress(mesh) == data == coding.encode(CUBE, model=codec)
    assert coding.decode(data, model=codec) == write_obj(found)
    cloud = Geometry(mesh.vertices, mesh.faces[:0])
    assert codec.decompress(codec.compress(cloud)).is_cloud


def test_a_mesh_moved_and_scaled_comes_back_moved_and_scaled(codec: BridgeCodec):
    mesh = read_geometry(CUBE)
    first = codec.decompress(codec.compress(mesh)).vertices
    moved = codec.decompress(codec.compress(mesh.moved(np.array([-5.0, 2, 0]), 4.0))).vertices
    assert np.allclose(moved, (first - np.array([-5.0, 2, 0])) * 4, atol=1e-4)


def test_another_model_is_refused_by_name(job: MeshJob, codec: BridgeCodec):
    data = codec.compress(read_geometry(CUBE))
    with pytest.raises(ModelMismatch, match="ffffffff"):
        job.module.codec("0" * 64).decompress(data)


def test_damage_is_told_and_never_crashes(codec: BridgeCodec):
    data = codec.compress(read_geometry(CUBE))
    container = Container.from_bytes(data)
    random = np.random.default_rng(0)
    codec.generator.resolution = 8
    for _ in range(400):
        with pytest.raises(CorruptStream):
            codec.decompress(data[: random.integers(len(data))])
        position = random.integers(len(data))
        with pytest.raises(CorruptStream):
            codec.decompress(data[:position] + bytes([data[position] ^ random.integers(1, 256)]) + data[position + 1 :])
    outcomes = set()
    for _ in range(300):
        streams = [bytearray(stream) for stream in container.streams]
        chosen = streams[random.integers(2)]
        if random.random() < 0.5:
            del chosen[random.integers(len(chosen)) :]
        else:
            chosen[random.integers(len(chosen))] = random.integers(256)
        # Behind a valid checksum: a shape, or a typed error.
        try:
            outcomes.add(type(codec.decode(container.header, tuple(map(bytes, streams)))))
        except CorruptStream:
            outcomes.add(CorruptStream)
    codec.generator.resolution = 32
    assert outcomes == {bytes, CorruptStream}


@pytest.mark.parametrize("header", [{}, {"cloud": 1}, {"cloud": "yes"}])
def test_a_header_without_its_kind_is_refused(codec: BridgeCodec, header):
    _, streams = codec.encode(CUBE)
    with pytest.raises(CorruptStream):
        codec.decode(header, tuple(streams))


def test_what_cannot_be_sent_is_refused(codec: BridgeCodec):
    with pytest.raises(InvalidArgument, match="one point"):
        codec.encode(b"v 1 1 1\nv 1 1 1\n")
    with pytest.raises(InvalidArgument, match="no area"):
        codec.encode(b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    with pytest.raises(InvalidArgument, match="float32"):
        codec.encode(b"v 0 0 0\nv 1e35 0 0\nv 0 1e35 0\nf 1 2 3\n")


def test_training_on_files_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="makes up"):
        start(tmp_path, 10, 0, {})
    with pytest.raises(InvalidArgument, match="kind"):
        start(None, 10, 0, {"kind": "unet"})


@pytest.mark.parametrize("change", [{"code": 10**9}, {"code": -1}, {"kind": "unet"}, {"bits": "8"}])
def test_a_configuration_out_of_bounds_builds_nothing(job: MeshJob, change):
    with pytest.raises((ValueError, TypeError)):
        load({**job.config, **change}, job.module.state_dict(), "")


def test_a_new_process_decodes_a_file(job: MeshJob, tmp_path):
    from tersor.coding.files import encode_file

    save_codec(tmp_path / "model", "mesh", job.config, job.module.state_dict(), {})
    (tmp_path / "cube.obj").write_bytes(CUBE)
    encode_file(tmp_path / "cube.obj", tmp_path / "cube.tersor", codec="mesh", model=str(tmp_path / "model"))
    code = (
        "import sys; from pathlib import Path; from tersor.coding.files import decode_file\n"
        "decode_file(Path(sys.argv[1]), Path(sys.argv[2]), model=sys.argv[3])"
    )
    arguments = [str(tmp_path / name) for name in ("cube.tersor", "out.obj", "model")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = read_geometry((tmp_path / "out.obj").read_bytes())
    wanted = job.module.codec("x").reconstruct(read_geometry(CUBE).moved(np.full(3, 0.5), 0.9 / np.sqrt(0.75)))
    assert np.allclose((found.vertices - 0.5) * 0.9 / np.sqrt(0.75), wanted.vertices, atol=1e-4)
    assert load_codec(tmp_path / "model").name == "mesh"
