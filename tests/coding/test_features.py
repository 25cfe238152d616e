"""Features of a split network as bytes: the teacher, the bottleneck, both stages of training, real rates, damage."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tersor.coding.entropy import EntropyBottleneck
from tersor.coding.errors import CorruptStream
from tersor.coding.features import (
    CIFAR10,
    DivisiveNorm,
    EntropicStudent,
    FeatureDecoder,
    FeatureEncoder,
    FitConfig,
    cifar_resnet,
    fit_stage1,
    fit_stage2,
    load_teacher,
    multiplications,
    normalise,
    split_model,
    start_blocks,
)
from tersor.coding.features.fitting import batches, stage1_loss
from tersor.coding.features.training import FeatureCodec, FeatureJob, load, read_images, start
from tersor.coding.training import run_job
from tersor.errors import CorruptFile, InvalidArgument


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth coloured noise, uint8 ``[count, 3, 32, 32]``."""
    random = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 8, 8, generator=random)
    return (255 * nn.functional.interpolate(small, scale_factor=4, mode="bilinear")).to(torch.uint8)


def small_teacher(seed: int = 0) -> nn.Sequential:
    teacher = cifar_resnet(8)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * (2 / parameter[0].numel()) ** 0.5)
    return teacher.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained() -> tuple[EntropicStudent, nn.Sequential, torch.Tensor]:
    teacher, x = small_teacher(), normalise(pictures(64))
    student = EntropicStudent(teacher, 4)
    fit_stage1(student, teacher, x, beta=0.5, config=FitConfig(steps=25, batch=16, learning_rate=5e-3))
    return student, teacher, x


def test_the_published_teacher_is_as_right_as_published(data_dir: Path):
    teacher = load_teacher(data_dir / "models" / "resnet20-12fca82f.th")
    images, labels = read_images(data_dir / "images" / "cifar10_lossless_part.npz", "test")
    with torch.no_grad():
        found = torch.cat([teacher(normalise(part)).argmax(1) for part in images.split(128)])
    assert float((found == labels).float().mean()) == pytest.approx(0.917, abs=0.005)


@pytest.mark.parametrize("depth", [20, 56])
def test_a_network_has_the_layers_of_its_depth(depth: int):
    network = cifar_resnet(depth)
    counted = sum(isinstance(part, (nn.Conv2d, nn.Linear)) for part in network.modules())
    assert counted == depth
    assert sum(parameter.numel() for parameter in network.parameters()) == {20: 269_722, 56: 853_018}[depth]


@pytest.mark.parametrize("depth", [2, 21])
def test_other_depths_are_refused(depth: int):
    with pytest.raises(InvalidArgument, match="6 n"):
        cifar_resnet(depth)


@pytest.mark.parametrize("content", [b"", b"not a state dict", b"PK\x03\x04" + bytes(40)])
def test_a_damaged_teacher_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "teacher.th").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"teacher\.th"):
        load_teacher(tmp_path / "teacher.th")


@pytest.mark.parametrize("at", ["conv1", "layer1", "layer3"])
def test_both_parts_of_a_split_network_are_the_network(at: str):
    teacher, x = small_teacher(), normalise(pictures(2))
    head, tail = split_model(teacher, at)
    with torch.no_grad():
        assert torch.equal(tail(head(x)), teacher(x))


def test_a_network_is_split_only_where_something_follows():
    with pytest.raises(InvalidArgument, match="layer1"):
        split_model(cifar_resnet(8), "linear")


def test_divisive_norm_is_its_formula_and_its_inverse_multiplies():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=random)
    norm, inverse = DivisiveNorm(3), DivisiveNorm(3, inverse=True)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=random))
    inverse.load_state_dict(norm.state_dict())
    gamma, beta = norm.gamma.square() - 2.0**-36, norm.beta.square() - 2.0**-36
    denominator = beta[None, :, None, None] + torch.einsum("ij,njhw->nihw", gamma, x.abs())
    assert torch.allclose(norm(x), x / denominator, atol=1e-6)
    assert torch.allclose(inverse(x), x * denominator, atol=1e-6)


def test_the_shapes_and_the_work_of_the_bottleneck():
    encoder, decoder = FeatureEncoder(8), FeatureDecoder(8, 16)
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 16, 16)
    assert decoder(torch.zeros(1, 8, 16, 16)).shape == (1, 16, 32, 32)
    assert multiplications(encoder, (3, 32, 32)) == 256 * (75 * 32 + 9 * 32 * 16 + 9 * 16 * 8)
    assert multiplications(nn.ConvTranspose2d(2, 3, 4, 2, 1), (2, 5, 5)) == 25 * 2 * 3 * 16
    head, _ = split_model(cifar_resnet(20))
    assert multiplications(encoder, (3, 32, 32)) < multiplications(head, (3, 32, 32)) / 6


def test_the_first_loss_is_sums_over_every_stage_plus_the_price_of_the_bits():
    teacher, x = small_teacher(), normalise(pictures(3))
    student = EntropicStudent(teacher, 4).eval()
    with torch.no_grad():
        _, likelihood = student.latent(x)
        decoded, target = student.decoder(student.latent(x)[0]), teacher[:4](x)
        distance = (decoded - target).square().sum()
        for name in ("layer2", "layer3"):
            decoded, target = getattr(teacher, name)(decoded), getattr(teacher, name)(target)
            distance += (decoded - target).square().sum()
        bits = -likelihood.log2().sum()
        found = {beta: float(stage1_loss(student, teacher, x, beta, torch.Generator())) for beta in (0.0, 2.0)}
    assert found[0.0] == pytest.approx(float(distance) / 3, rel=1e-4)
    assert found[2.0] - found[0.0] == pytest.approx(2 * float(bits) / 3, rel=1e-3)


def test_stage_1_leaves_the_tail_alone_and_stage_2_the_bytes(trained):
    student, teacher, x = trained
    _, tail = split_model(teacher)
    pairs = zip(student.tail().state_dict().values(), tail.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    before = student.encode(x[:16])
    labels = torch.arange(64) % 10
    first = {key: value.clone() for key, value in student.state_dict().items()}
    losses = fit_stage2(student, teacher, x, labels, config=FitConfig(steps=5, batch=16, learning_rate=1e-5))
    changed = {key.split(".")[0] for key, value in student.state_dict().items() if not torch.equal(value, first[key])}
    assert changed == {"decoder", "tails"}
    assert student.encode(x[:16]) == before
    assert len(losses) == 5


def test_training_lowers_the_loss(trained):
    student, teacher, x = trained
    fresh = EntropicStudent(teacher, 4).eval()
    with torch.no_grad():
        losses = [float(stage1_loss(one.eval(), teacher, x, 0.5, torch.Generator())) for one in (fresh, student)]
    assert losses[1] < 0.8 * losses[0]


def test_bytes_are_what_the_densities_say_and_latents_come_back_exactly(trained):
    student, _, x = trained
    streams = student.encode(x)
    with torch.no_grad():
        latent, likelihood = student.eval().latent(x)
    bits = -likelihood.double().log2().flatten(1).sum(1)
    for stream, estimate in zip(streams, bits.tolist(), strict=True):
        assert abs(len(stream) - estimate / 8) < 0.03 * estimate / 8 + 16
    assert abs(sum(map(len, streams)) - float(bits.sum()) / 8) < 0.03 * float(bits.sum()) / 8 + 3 * len(streams)
    assert torch.equal(student.read(streams), latent)
    with torch.no_grad():
        assert torch.allclose(student.decode(streams), student(x), atol=1e-4)


def test_every_image_is_decoded_alone_and_by_several_tails(trained):
    student, teacher, x = trained
    streams = student.encode(x[:5])
    assert torch.allclose(student.decode([streams[3]]), student.decode(streams)[3:4], atol=1e-4)
    if "animals" not in student.tails:
        _, other = split_model(cifar_resnet(8, 2))
        student.attach_tail("animals", other)
    assert student.decode(streams, "animals").shape == (5, 2)
    with pytest.raises(InvalidArgument, match="already"):
        student.attach_tail("animals", other if "other" in locals() else nn.Sequential())
    with pytest.raises(InvalidArgument, match="no tail 'plants'"):
        student.decode(streams, "plants")


def test_all_components_of_blocks_at_a_small_step_are_the_teacher():
    teacher, x = small_teacher(), normalise(pictures(6))
    student = EntropicStudent(teacher, 192, transform="blocks").eval()
    student.start_from(x, 1e-3)
    with torch.no_grad():
        assert torch.allclose(student(x), teacher(x), atol=1e-2)
        basis = student.encoder.weight.flatten(1) * 1e-3
    assert torch.allclose(basis @ basis.T, torch.eye(192), atol=1e-4)


def test_blocks_cost_less_and_lose_more_at_a_larger_step_and_the_price_chooses_it():
    teacher, x = small_teacher(), normalise(pictures(16))
    student = EntropicStudent(teacher, 48, transform="blocks").eval()
    sizes, losses = [], []
    for step in (0.2, 0.8, 3.2):
        student.start_from(x, step)
        student.prior.update()
        streams = student.encode(x)
        with torch.no_grad():
            latent, likelihood = student.latent(x)
            losses.append(float(stage1_loss(student, teacher, x, 0.0, torch.Generator())))
        assert torch.equal(student.read(streams), latent)
        assert sum(map(len, streams)) * 8 == pytest.approx(float(-likelihood.log2().sum()), rel=0.03, abs=8 * 3 * 16)
        sizes.append(sum(map(len, streams)))
    assert sizes == sorted(sizes, reverse=True)
    assert losses == sorted(losses)
    chosen = [start_blocks(student, teacher, x, beta, (0.2, 0.8, 3.2)) for beta in (1e-4, 1e4)]
    assert chosen[0] < chosen[1]


def test_a_prior_begins_at_the_spreads_that_it_is_given():
    prior = EntropyBottleneck(3)
    spreads = torch.tensor([0.5, 4.0, 60.0])
    prior.start_from(spreads)
    steps = torch.arange(-2000, 2001).float().expand(3, -1)
    likelihood = prior.likelihood(steps)
    assert torch.allclose(likelihood.sum(1), torch.ones(3), atol=1e-4)
    deviation = (likelihood * steps.square()).sum(1).sqrt()
    assert torch.allclose(deviation, (spreads.square() + 1 / 12).sqrt(), rtol=0.05)
    # A distribution that is even about zero is not zero there.
    assert (likelihood[:, 2000] >= likelihood.max(1).values - 1e-6).all()


def test_the_norms_of_the_tail_keep_their_statistics_while_training(trained):
    student, _, x = trained
    before = student.tail().state_dict()["layer2.0.bn1.running_mean"].clone()
    student.train()
    student(x[:8])
    assert torch.equal(student.tail().state_dict()["layer2.0.bn1.running_mean"], before)
    student.eval()


def test_batches_follow_from_seed_and_step():
    x, labels = normalise(pictures(20)), torch.arange(20)
    config = FitConfig(batch=6, seed=3)
    first, again, later = (batches(x, labels, config, step) for step in (7, 7, 8))
    other, _, _ = batches(x, labels, replace(config, seed=4), 7)
    assert not torch.equal(first[0], other)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], later[0])
    assert first[0].shape == (6, 3, 32, 32)


@pytest.mark.parametrize("seed", [0, 1])
def test_training_follows_from_its_seed(seed: int):
    teacher, x = small_teacher(), normalise(pictures(16))
    states = []
    for _ in range(2):
        student = EntropicStudent(teacher, 4, seed=seed)
        fit_stage1(student, teacher, x, beta=1.0, config=FitConfig(steps=2, batch=4, seed=seed))
        states.append(student.encode(x[:2]))
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t, x: s.encode(x[:, :, :16]), "takes images"),
        (lambda s, t, x: s.encode(x * float("nan")), "NaN"),
        (lambda s, t, x: s.decode([]), "nothing to decode"),
        (lambda s, t, x: fit_stage1(s, t, x, beta=0.0), "beta"),
        (lambda s, t, x: fit_stage1(s, t, x * float("inf"), beta=1.0), "finite"),
        (lambda s, t, x: fit_stage2(s, t, x, torch.zeros(3, dtype=torch.long)), "labels"),
        (lambda s, t, x: EntropicStudent(t, 0), "channel"),
        (lambda s, t, x: EntropicStudent(t, 4, at="layer2"), "keeps the size"),
        (lambda s, t, x: EntropicStudent(t, 4).encode(x), "update"),
        (lambda s, t, x: EntropicStudent(t, 4, transform="wavelets"), "transform"),
        (lambda s, t, x: EntropicStudent(t, 193, transform="blocks").start_from(x, 1.0), "192 components"),
        (lambda s, t, x: s.start_from(x, 1.0), "only a student"),
    ],
)
def test_what_cannot_be_is_refused(trained, call, message: str):
    with pytest.raises(InvalidArgument, match=message):
        call(*trained)


@pytest.fixture(scope="module")
def job() -> FeatureJob:
    """A training of a few steps over both stages."""
    config = {"channels": 4, "beta": 1.0, "transform": "blocks", "depth": 8, "classes": 10}
    job = FeatureJob(small_teacher(), pictures(32), torch.arange(32) % 10, config, 10, 0, "noise")
    run_job(job)
    return job


@pytest.fixture(scope="module")
def codec(job: FeatureJob) -> FeatureCodec:
    return load(job.config, job.module.state_dict(), "f" * 64)


def array(images: torch.Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, images.numpy())
    return file.getvalue()


def test_arrays_become_a_stream_an_image_and_classes(codec: FeatureCodec):
    header, streams = codec.encode(array(pictures(3)))
    assert len(streams) == 3
    said = json.loads(codec.decode(header, tuple(streams)))
    logits = codec.student(normalise(pictures(3)))
    assert [row[0]["class"] for row in said] == [CIFAR10[i] for i in logits.argmax(1)]
    assert all(0.99 <= sum(one["probability"] for one in row) <= 1.001 for row in said)


@pytest.mark.parametrize(
    "data",
    [
        array(pictures(2))[:-1],
        array(pictures(2).float()),
        array(pictures(2)[:, :, :16]),
        array(pictures(2)).replace(b"(2, 3, 32, 32)", b"(9999999, 3, 3"),
        b"\x93NUMPY\x01\x00\xff\xff",
    ],
)
def test_other_arrays_are_refused(codec: FeatureCodec, data: bytes):
    with pytest.raises(InvalidArgument):
        codec.encode(data)


def test_damaged_streams_give_a_typed_error_or_classes(codec: FeatureCodec):
    _, streams = codec.encode(array(pictures(2)))
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        stream = bytearray(streams[random.integers(2)])
        if random.random() < 0.5:
            del stream[random.integers(len(stream)) :]
        else:
            stream[random.integers(len(stream))] = random.integers(256)
        try:
            outcomes.add(type(codec.decode({}, (bytes(stream),))))
        except CorruptStream:
            outcomes.add(CorruptStream)
    assert outcomes == {bytes, CorruptStream}
    with pytest.raises(CorruptStream, match="no image"):
        codec.decode({}, ())


@pytest.mark.parametrize(
    "change", [{"channels": 10**9}, {"depth": 10**6}, {"transform": "convolutions"}, {"classes": "10"}, {"channels": 5}]
)
def test_a_configuration_that_does_not_fit_builds_nothing(job: FeatureJob, change):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        load({**job.config, **change}, job.module.state_dict(), "")


def test_a_training_needs_its_files(tmp_path: Path):
    with pytest.raises(InvalidArgument, match=r"exactly one \.th"):
        start(tmp_path, 10, 0, {})
    with pytest.raises(InvalidArgument, match="beta"):
        start(tmp_path, 10, 0, {"beta": "-1"})
    (tmp_path / "images.npz").write_bytes(b"nothing")
    with pytest.raises(InvalidArgument, match="x_train"):
        read_images(tmp_path / "images.npz", "train")
