"""The vector-quantised codec: indices, prior in integers, guesses at what was lost, files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tersor import coding
from tersor.coding.entropy import Container
from tersor.coding.errors import CorruptStream
from tersor.coding.image_vq import ImageVQCodec, ImageVQJob, IndexInpainter, IndexPrior, VQConfig, VQNetwork
from tersor.coding.image_vq.prior import LEARNED, UNIFORM
from tersor.coding.interlaced import passes
from tersor.coding.pictures import read_picture, write_picture
from tersor.coding.training import run_job
from tersor.errors import InvalidArgument, TersorError

SMALL = VQConfig(stride=4, codes=32, smaller="8", width=16, embedding=8)


def picture(height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, -(-height // 8), -(-width // 8), generator=random)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return torch.round(fine * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def codec() -> ImageVQCodec:
    job = ImageVQJob([picture(64, 64, seed) for seed in range(4)], SMALL, steps=60, crop=32, batch=4)
    run_job(job)
    return ImageVQCodec(job.module, "f" * 64)


def test_the_network_takes_the_nearest_codeword():
    network, random = VQNetwork(SMALL), torch.Generator().manual_seed(0)
    latents = torch.randn(50, 8, generator=random)
    head = network.head(0)
    distances = torch.cdist(latents.double(), head.codebook.detach().double())
    assert torch.equal(head.nearest(latents), distances.argmin(1))


def test_gradients_pass_straight_through_and_codewords_follow_their_latents():
    network = VQNetwork(SMALL)
    batch = picture(32, 32)[None].float() / 127.5 - 1
    decoded, quantisation, latents, indices = network.losses(network.encoder(batch), 0)
    decoded.sum().backward(retain_graph=True)
    head = network.head(0)
    assert head.codebook.grad is None
    assert float(head.before.weight.grad.abs().sum()) > 0
    quantisation.backward()
    # The textbook term on codewords is the mean squared distance of latents from them.
    expected = torch.zeros_like(head.codebook).index_add_(0, indices, 2 * (head.codebook.detach()[indices] - latents)) / latents.numel()
    torch.testing.assert_close(head.codebook.grad, expected)


@pytest.mark.parametrize("legacy", [0, 1])
def test_the_weight_of_commitment_is_where_it_is_said(legacy: int):
    network = VQNetwork(VQConfig(stride=4, codes=32, smaller="", width=16, embedding=8, commitment=0.25, legacy_beta=legacy))
    batch = picture(32, 32)[None].float() / 127.5 - 1
    _, quantisation, latents, indices = network.losses(network.encoder(batch), 0)
    quantisation.backward()
    full = torch.zeros_like(network.head(0).codebook).index_add_(0, indices, 2 * (network.head(0).codebook.detach()[indices] - latents))
    torch.testing.assert_close(network.head(0).codebook.grad, (0.25 if legacy else 1.0) * full / latents.numel())
    distance = (network.head(0).codebook.detach()[indices] - latents).square().mean()
    assert quantisation.item() == pytest.approx(1.25 * float(distance), rel=1e-5)


def test_codewords_that_nothing_uses_are_moved():
    head = VQNetwork(SMALL).head(0)
    latents = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.codebook[0] = 1e6
    indices = torch.arange(100) % 31 + 1
    for _ in range(300):
        head.restart(latents, indices, torch.Generator().manual_seed(0), revive=False)
    before = head.codebook.detach().clone()
    head.restart(latents, indices, torch.Generator().manual_seed(1), revive=True)
    assert torch.equal(head.codebook[1:], before[1:])
    assert float((latents - head.codebook[0].detach()).abs().sum(1).min()) == 0


@pytest.mark.parametrize("start", ["latents", "codebook"])
def test_reduced_codebooks_are_k_means_of_the_base(start: str):
    network = VQNetwork(SMALL)
    base, head = network.head(0), network.head(1)
    with torch.no_grad():
        base.codebook.copy_(torch.arange(32)[:, None].div(4, rounding_mode="floor") * 100.0 + torch.arange(32)[:, None] % 4)
        base.usage.copy_(torch.tensor([1.0, 0, 0, 0] * 8))
    network.reduce(1, 0, start)
    found = head.codebook[:, 0].sort().values
    # Counted as they are used, the cluster's one used codeword; counted once each, the mean of its four.
    expected = torch.arange(8) * 100 + (0.0 if start == "latents" else 1.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(head.before.weight, base.before.weight)


def random_prior(codes: int = 20, seed: int = 0) -> IndexPrior:
    prior = IndexPrior(codes, 4, hidden=16, seed=seed)
    prior.freeze(torch.randn(codes, 4, generator=torch.Generator().manual_seed(seed)) * 2)
    return prior


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 30), (8, 8), (13, 29), (70, 90)])
@pytest.mark.parametrize("mode", [UNIFORM, LEARNED])
def test_indices_there_and_back(rows: int, columns: int, mode: int):
    prior = random_prior()
    indices = torch.randint(20, (rows, columns), generator=torch.Generator().manual_seed(1))
    data = prior.encode(indices, mode)
    assert torch.equal(prior.decode(data, rows, columns), indices)
    # One byte says how, four check; the rest is what the prior gives, or the logarithm of the codebook.
    ideal = prior.ideal_bits(indices) if mode == LEARNED else rows * columns * math.log2(20)
    # A range coder may leave out a last byte.
    assert ideal - 8 <= 8 * (len(data) - 5) <= ideal * 1.0005 + 16


@pytest.mark.parametrize("codes", [2, 37, 512])
def test_weights_are_distributions_with_a_least_cost(codes: int):
    prior = IndexPrior(codes, 4, hidden=16)
    with torch.no_grad():
        prior.first[0], prior.last.bias[1] = 30.0, 30.0
    prior.freeze(torch.randn(codes, 4, generator=torch.Generator().manual_seed(0)))
    grid = np.zeros((16, 16), dtype=np.int64)
    for one in passes(16, 16):
        weights = prior.weights(grid, one, slice(None))
        assert weights.shape == (one.rows.size, codes)
        assert (weights.sum(1) == 1 << 16).all()
        assert weights.min() >= 1
        assert (16 - np.log2(weights.max())) * codes / (codes - 1) > 1 / 520


def test_the_integers_are_the_trained_distribution():
    prior, random = IndexPrior(12, 4, hidden=16, seed=3), torch.Generator().manual_seed(3)
    codebook = torch.randn(12, 4, generator=random)
    with torch.no_grad():
        prior.first.copy_(torch.randn(12, generator=random))
    prior.freeze(codebook)
    indices = torch.randint(12, (3, 24, 24), generator=random)
    with torch.no_grad():
        expected = float(prior.loss(indices, codebook)) / math.log(2)
    found = np.mean([prior.ideal_bits(grid) for grid in indices]) / 24**2
    assert found == pytest.approx(expected, abs=0.02)


def test_a_prior_learns_what_is_around():
    prior = IndexPrior(8, 8, hidden=32)
    codebook = torch.eye(8)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    random = torch.Generator().manual_seed(0)

    def grids(count: int) -> torch.Tensor:
        # Blocks of four places a side that share an index.
        coarse = torch.randint(8, (count, 4, 4), generator=random)
        return coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)

    for _ in range(120):
        optimizer.zero_grad()
        prior.loss(grids(8), codebook).backward()
        optimizer.step()
    prior.freeze(codebook)
    bits = np.mean([prior.ideal_bits(grid) for grid in grids(10)])
    assert bits < 0.35 * 3 * 16 * 16


def test_the_prior_is_the_same_under_any_number_of_threads(codec: ImageVQCodec):
    prior, indices = codec.model.prior(0), codec.indices(picture().float() / 255)
    before = torch.get_num_threads()
    try:
        coded = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            coded.append(prior.encode(indices))
            assert torch.equal(prior.decode(coded[0], *indices.shape), indices)
            assert torch.equal(codec.indices(picture().float() / 255), indices)
    finally:
        torch.set_num_threads(before)
    assert coded[0] == coded[1] == coded[2]


@pytest.mark.parametrize("mode", [UNIFORM, LEARNED])
def test_damaged_indices_are_told(mode: int):
    prior = random_prior()
    indices = torch.randint(20, (16, 24), generator=torch.Generator().manual_seed(1))
    data, random = prior.encode(indices, mode), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] ^= int(random.integers(1, 256))
        with pytest.raises(CorruptStream):
            prior.decode(bytes(damaged), 16, 24)
    for kept in range(len(data)):
        with pytest.raises(CorruptStream):
            prior.decode(data[:kept], 16, 24)
    with pytest.raises(CorruptStream, match="more than its"):
        prior.decode(data, 1 << 20, 1 << 20)


def test_priors_refuse_what_is_not_theirs():
    with pytest.raises(InvalidArgument, match="0 to 19"):
        random_prior().encode(torch.full((2, 2), 20))
    with pytest.raises(InvalidArgument, match="no prior yet"):
        IndexPrior(8, 4).encode(torch.zeros(2, 2, dtype=torch.long))


@pytest.mark.parametrize("sides", [(40, 56), (1, 1), (37, 50)])
@pytest.mark.parametrize("codes", [32, 8])
def test_what_is_decompressed_is_the_reconstruction(codec: ImageVQCodec, sides: tuple[int, int], codes: int):
    chosen = codec.with_codes(codes)
    image = picture()[:, : sides[0], : sides[1]].float() / 255
    data, indices = chosen.compress(image), chosen.indices(image)
    assert indices.shape == (-(-sides[0] // 4), -(-sides[1] // 4))
    assert torch.equal(chosen.decompress(data, sides), chosen.reconstruct(indices, sides))
    # Never dearer than equally likely indices.
    assert 8 * (len(data) - 5) <= indices.numel() * math.log2(codes) + 16


def test_training_in_stages_follows_its_seed():
    def job(seed: int) -> ImageVQJob:
        return ImageVQJob([picture(64, 64)], SMALL, steps=20, seed=seed, crop=32, batch=2)

    jobs = [job(0), job(0), job(1)]
    losses = [run_job(one) for one in jobs]
    assert losses[0] == losses[1] != losses[2]
    states = [one.module.state_dict() for one in jobs]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_short_trainings_have_all_their_codebooks(steps: int):
    job = ImageVQJob([picture(32, 32)], SMALL, steps=steps, crop=32, batch=2)
    run_job(job)
    for codes in (32, 8):
        codec = ImageVQCodec(job.module, codes=codes)
        image = picture(24, 24).float() / 255
        assert torch.equal(codec.decompress(codec.compress(image), (24, 24)), codec.reconstruct(codec.indices(image), (24, 24)))


def test_what_arrived_is_not_touched(codec: ImageVQCodec):
    image = picture().float() / 255
    indices = codec.indices(image)
    lost = torch.rand(indices.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    for rounds in (1, 3):
        filled = codec.model.inpainter.fill(indices.masked_fill(lost, 5), lost, codec.network.head(0).codebook, rounds)
        assert torch.equal(filled[~lost], indices[~lost])
        # What stands at lost places is not looked at.
        other = codec.model.inpainter.fill(indices.masked_fill(lost, 9), lost, codec.network.head(0).codebook, rounds)
        assert torch.equal(filled, other)
    nothing = torch.zeros_like(lost)
    assert torch.equal(codec.reconstruct(indices, (40, 56), nothing), codec.reconstruct(indices, (40, 56)))
    with pytest.raises(InvalidArgument, match="base codebook of 32"):
        codec.with_codes(8).reconstruct(codec.with_codes(8).indices(image), (40, 56), lost)


def test_an_inpainter_learns_what_is_around():
    inpainter, codebook = IndexInpainter(8, 8, window=8, width=32), torch.eye(8)
    optimizer = torch.optim.Adam(inpainter.parameters(), lr=3e-3)
    random = torch.Generator().manual_seed(0)

    def grids(count: int) -> torch.Tensor:
        return torch.randint(8, (count, 2, 2), generator=random).repeat_interleave(4, 1).repeat_interleave(4, 2)

    for _ in range(150):
        optimizer.zero_grad()
        inpainter.loss(grids(16), codebook, random).backward()
        optimizer.step()
    grid = grids(4)
    # A grid larger and one smaller than a window.
    large = torch.cat([torch.cat([grid[0], grid[1]], 1), torch.cat([grid[2], grid[3]], 1)])
    for part in (large, large[:8, :5]):
        lost = torch.rand(part.shape, generator=random) < 0.2
        filled = inpainter.fill(part, lost, codebook)
        assert float((filled == part)[lost].float().mean()) > 0.6


def test_files_name_their_codebook_and_are_checked(codec: ImageVQCodec):
    source = write_picture(picture())
    for codes in (32, 8):
        packed = coding.encode(source, model=codec.with_codes(codes))
        decoded = read_picture(coding.decode(packed, model=codec))
        expected = codec.with_codes(codes).reconstruct(codec.with_codes(codes).indices(picture().float() / 255), (40, 56))
        assert torch.equal(decoded, torch.round(expected * 255).to(torch.uint8))
        container = Container.from_bytes(packed)
        assert container.header["codes"] == codes
        # What is told to cost is what the file takes: its stream, and under 80 bytes of header.
        assert container.payload_bits < 8 * len(packed) < container.payload_bits + 8 * 80
    container = Container.from_bytes(packed)
    sizes = ([0, 5], [1 << 30, 1 << 30], [1 << 12, 1 << 12], [40], 7)
    for change in ({"codes": 16}, {"codes": "8"}, *({"sides": size} for size in sizes)):
        with pytest.raises(CorruptStream):
            coding.decode(Container(container.codec, {**container.header, **change}, container.streams).to_bytes(), model=codec)
    random = np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(packed)
        damaged[random.integers(len(damaged))] ^= int(random.integers(1, 256))
        with pytest.raises(TersorError):
            coding.decode(bytes(damaged), model=codec)


def test_settings_out_of_range_are_told():
    codebooks = ({"smaller": "128,512"}, {"codes": 1}, {"smaller": "x"})
    for wrong in ({"stride": 5}, {"start": "random"}, {"width": 0}, {"commitment": -1.0}, *codebooks):
        with pytest.raises(InvalidArgument):
            VQConfig(**wrong)
    with pytest.raises(InvalidArgument, match="codebooks of 32, 8 codewords, not of 9"):
        ImageVQCodec(ImageVQJob([picture(32, 32)], SMALL, 1).module, codes=9)
