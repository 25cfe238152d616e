"""WaLLoC: its wavelets, its latents, its files."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tersor.coding.blocks import padded
from tersor.coding.errors import CorruptStream
from tersor.coding.interlaced import check_count, passes
from tersor.coding.walloc import Compander, LatentTables, WallocCodec, WallocConfig, WallocJob, WallocNetwork, WaveletPacket
from tersor.errors import InvalidArgument


def random_signal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 0.5


@pytest.mark.parametrize(("levels", "shape"), [(1, (2, 3, 6, 4)), (2, (1, 1, 4, 12)), (3, (2, 3, 16, 8)), (4, (1, 2, 16, 16))])
def test_packets_of_pictures_are_inverted(levels: int, shape: tuple[int, ...]):
    packet, signal = WaveletPacket(levels, 2), random_signal(*shape)
    bands = packet.forward(signal)
    assert bands.shape == (shape[0], shape[1] * 4**levels, shape[2] >> levels, shape[3] >> levels)
    torch.testing.assert_close(packet.inverse(bands), signal, rtol=0, atol=1e-12)
    # And the other way round: nothing is in the bands that a signal cannot hold.
    other = random_signal(*bands.shape, seed=1)
    torch.testing.assert_close(packet.forward(packet.inverse(other)), other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 3, 6])
def test_packets_of_sounds_are_inverted(levels: int):
    packet, signal = WaveletPacket(levels, 1), random_signal(2, 2, 3 << levels)
    bands = packet.forward(signal)
    assert bands.shape == (2, 2 << levels, 3)
    torch.testing.assert_close(packet.inverse(bands), signal, rtol=0, atol=1e-11)
    single = packet.inverse(packet.forward(signal.float()))
    torch.testing.assert_close(single, signal.float(), rtol=0, atol=1e-5)


def test_one_level_is_that_of_pywavelets():
    pywt = pytest.importorskip("pywt")
    signal = random_signal(1, 1, 16, 24)
    low, details = pywt.dwt2(signal[0, 0].numpy(), "bior4.4", mode="periodization")
    ours = WaveletPacket(1, 2).forward(signal)[0].numpy()
    for band, theirs in zip(ours, (low, *details), strict=True):
        np.testing.assert_allclose(band, theirs, atol=1e-10)
    row = random_signal(1, 1, 32, seed=3)
    expected = pywt.dwt(row[0, 0].numpy(), "bior4.4", mode="periodization")
    for band, theirs in zip(WaveletPacket(1, 1).forward(row)[0].numpy(), expected, strict=True):
        np.testing.assert_allclose(band, theirs, atol=1e-10)


def test_two_levels_split_every_band():
    pywt = pytest.importorskip("pywt")
    signal = random_signal(1, 1, 16, 16)
    tree = pywt.WaveletPacket2D(signal[0, 0].numpy(), "bior4.4", mode="periodization", maxlevel=2)
    # In their names a is low and d high, h is high along the columns, v high along the rows.
    names = ["".join(pair) for pair in itertools.product("ahvd", repeat=2)]
    for band, name in zip(WaveletPacket(2, 2).forward(signal)[0].numpy(), names, strict=True):
        np.testing.assert_allclose(band, tree[name].data, atol=1e-9)


def test_the_transform_is_nearly_orthogonal():
    matrix = WaveletPacket(1, 1).forward(torch.eye(16, dtype=torch.float64)[:, None]).flatten(1)
    values = torch.linalg.svdvals(matrix)
    assert 0.86 < float(values.min()) < 1 < float(values.max()) < 1.16


def test_packets_refuse_what_does_not_divide():
    with pytest.raises(InvalidArgument, match="multiples of 4"):
        WaveletPacket(2, 2).forward(torch.zeros(1, 3, 6, 8))
    with pytest.raises(InvalidArgument, match="levels must be"):
        WaveletPacket(0, 2)
    with pytest.raises(InvalidArgument, match="a multiple of 16"):
        WaveletPacket(2, 2).inverse(torch.zeros(1, 12, 2, 2))


@pytest.mark.parametrize("side", [1, 2, 5, 8, 13])
def test_padding_mirrors(side: int):
    row = torch.arange(side, dtype=torch.float64)
    made = padded(row[None, None], 8)[0, 0]
    assert len(made) == -(-side // 8) * 8
    expected = np.pad(row.numpy(), (0, len(made) - side), mode="reflect")
    np.testing.assert_array_equal(made.numpy(), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_compander_uses_its_integers_evenly(bits: int):
    largest = (1 << (bits - 1)) - 1
    compander = Compander(largest)
    # Normal latents of the scale it is made for come out uniform.
    normal = compander.scale * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    steps = torch.round(compander(normal)).long()
    assert int(steps.abs().max()) == largest
    shares = torch.bincount(steps + largest).double() / len(steps)
    assert float((shares - 1 / (2 * largest + 1)).abs().max()) < 0.05 / (2 * largest + 1) + 0.003
    whole = torch.arange(-largest, largest + 1).double()
    back = compander(compander.inverse(whole))
    # The inverse distribution is cut off at one part in ten thousand on either side.
    torch.testing.assert_close(back, whole, rtol=0, atol=2 * compander.reach * 1e-4 + 1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 37), (9, 1), (8, 8), (13, 21)])
def test_passes_visit_every_place_once_and_read_only_the_past(height: int, width: int):
    seen = np.zeros((height, width), dtype=int)
    for one in passes(height, width):
        future = np.where(seen > 0, 1, 7)
        if one.reach:
            around = one.neighbours(future, 0)
            assert set(np.unique(around)) <= {0, 1}
        seen[one.rows, one.columns] += 1
    assert (seen == 1).all()


def smooth_latents(count: int, channels: int, side: int, largest: int, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, side // 4, side // 4, generator=random)
    fine = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear") * largest / 2
    return list(torch.round(fine + torch.randn(fine.shape, generator=random) * 0.4).clamp(-largest, largest).long())


def fitted(largest: int = 7) -> LatentTables:
    tables = LatentTables(3, largest)
    tables.fit(smooth_latents(30, 3, 32, largest))
    return tables


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (32, 32), (5, 7), (96, 64)])
@pytest.mark.parametrize("kind", ["smooth", "random", "zero", "extreme"])
def test_latents_there_and_back(height: int, width: int, kind: str):
    tables, random = fitted(), torch.Generator().manual_seed(1)
    made = {
        "smooth": smooth_latents(1, 3, 96, 7, 5)[0][:, :height, :width],
        "random": torch.randint(-7, 8, (3, height, width), generator=random),
        "zero": torch.zeros(3, height, width, dtype=torch.long),
        "extreme": torch.full((3, height, width), -7),
    }[kind]
    data = tables.encode(made)
    assert torch.equal(tables.decode(data, *made.shape[1:]), made)
    # Four bytes are the checksum; a word for each of at most seven passes, and its length.
    assert 8 * len(data) - 32 <= tables.ideal_bits(made) * 1.001 + 7 * (64 + 16)


def test_several_latents_count_like_one_after_the_other():
    latents = smooth_latents(6, 3, 16, 7)
    one, all_at_once = LatentTables(3, 7), LatentTables(3, 7)
    one.fit(latents)
    all_at_once.fit([torch.stack(latents)])
    assert torch.equal(one.weights, all_at_once.weights)
    assert one.ideal_bits(torch.stack(latents)) == pytest.approx(sum(map(one.ideal_bits, latents)))
    with pytest.raises(InvalidArgument, match="one by one"):
        one.encode(torch.stack(latents))


def test_neighbourhoods_pay():
    tables = fitted()
    latent = smooth_latents(1, 3, 96, 7, seed=9)[0]
    counts = np.stack([np.bincount(channel.flatten().numpy() + 7, minlength=15) for channel in latent])
    shares = counts / counts.sum(1, keepdims=True)
    order_zero = -(counts * np.log2(np.maximum(shares, 1e-12))).sum()
    assert 8 * len(tables.encode(latent)) < 0.85 * order_zero


def test_damaged_latents_are_told():
    tables, latent = fitted(), smooth_latents(1, 3, 32, 7, seed=2)[0]
    data = tables.encode(latent)
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] ^= int(random.integers(1, 256))
        with pytest.raises(CorruptStream):
            tables.decode(bytes(damaged), 32, 32)
    for kept in range(0, len(data), 37):
        with pytest.raises(CorruptStream):
            tables.decode(data[:kept], 32, 32)
    with pytest.raises(CorruptStream, match="more than its"):
        tables.decode(data, 1 << 20, 1 << 20)


def test_a_header_must_fit_its_bytes():
    check_count(8 * 100, 100, 1.0)
    with pytest.raises(CorruptStream, match="names 1,000,000 values"):
        check_count(1_000_000, 100, 0.1)


def test_tables_refuse_what_is_not_theirs():
    with pytest.raises(InvalidArgument, match="integers up to 7, got 8"):
        fitted().encode(torch.full((3, 2, 2), 8))
    with pytest.raises(InvalidArgument, match=r"\[3, height, width\]"):
        fitted().encode(torch.zeros(2, 2, 2, dtype=torch.long))
    with pytest.raises(InvalidArgument, match="no tables yet"):
        LatentTables(3, 7).encode(torch.zeros(3, 2, 2, dtype=torch.long))


def test_a_linear_codec_starts_at_principal_components():
    config = WallocConfig(channels=1, levels=1, latent=2, bits=10, width=8, blocks=0, companding="clip")
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=random) * torch.tensor([1.0, 0.5, 0.1, 0.05])
    bands = (torch.randn(64, 8, 8, 4, generator=random) @ mixing.T * 0.05).movedim(-1, 1)
    network = WallocNetwork(config)
    signals = network.packet.inverse(bands)
    network.start_from(signals)
    rows = bands.movedim(1, -1).flatten(0, -2)
    _, values, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    bound = float(values[2:].square().sum()) / rows.numel()
    with torch.no_grad():
        decoded = network.packet.forward(network.signal(network.encoder(network.packet.forward(signals))))
    assert float((decoded - bands).square().mean()) == pytest.approx(bound, rel=1e-3)


def trained(seed: int = 0, **changes: object) -> WallocCodec:
    config = WallocConfig(**{"levels": 2, "latent": 6, "bits": 4, "width": 16, "blocks": 1, **changes})
    sides = (64, 64) if config.ndim == 2 else (4096,)
    signals = [padded(smooth(config.channels, sides, index), 1)[0] for index in range(3)]
    job = WallocJob(signals, config, steps=8, seed=seed, crop=32)
    for step in range(8):
        job.optimizer.zero_grad()
        job.loss(step).backward()
        job.optimizer.step()
    job.module.eval()
    job.finish()
    return WallocCodec(job.module, "f" * 64)


def smooth(channels: int, sides: tuple[int, ...], seed: int) -> torch.Tensor:
    coarse = random_signal(1, channels, *(side // 8 for side in sides), seed=seed, dtype=torch.float32)
    return torch.nn.functional.interpolate(coarse, size=sides, mode="bilinear" if len(sides) == 2 else "linear")


@pytest.mark.parametrize("sides", [(64, 64), (1, 1), (7, 30), (33, 16)])
def test_what_is_decompressed_is_the_reconstruction(sides: tuple[int, int]):
    codec = trained()
    signal = smooth(3, (64, 64), 7)[0][:, : sides[0], : sides[1]]
    data = codec.compress(signal)
    latent = codec.latent(signal)
    assert latent.shape == (6, -(-sides[0] // 4), -(-sides[1] // 4))
    assert int(latent.abs().max()) <= codec.config.largest
    decoded = codec.decompress(data, sides)
    assert decoded.shape == signal.shape
    assert torch.equal(decoded, codec.reconstruct(latent, sides))


def test_the_dimensions_shrink_by_what_is_said():
    codec = trained()
    signal = smooth(3, (64, 32), 1)[0]
    assert signal.numel() / codec.latent(signal).numel() == codec.config.reduction == 8


def test_sounds_there_and_back():
    codec = trained(ndim=1, channels=2, levels=3, latent=4)
    signal = smooth(2, (1003,), 4)[0]
    assert torch.equal(codec.decompress(codec.compress(signal), (1003,)), codec.reconstruct(codec.latent(signal), (1003,)))


def test_training_lowers_the_error_and_follows_its_seed():
    config = WallocConfig(levels=2, latent=6, bits=4, width=16, blocks=1)
    signals = [smooth(3, (64, 64), index)[0] for index in range(3)]
    jobs = [WallocJob(signals, config, steps=40, seed=seed, crop=32) for seed in (0, 0, 1)]
    from tersor.coding.training import run_job

    losses = [run_job(job) for job in jobs]
    assert losses[0] == losses[1] != losses[2]
    assert np.mean(losses[0][-10:]) < np.mean(losses[0][:3])


def test_latents_do_not_depend_on_the_number_of_threads():
    codec, signal = trained(), smooth(3, (64, 64), 5)[0]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            data = codec.compress(signal)
            found.append((data, codec.decompress(data, (64, 64))))
    finally:
        torch.set_num_threads(before)
    assert found[0][0] == found[1][0] == found[2][0]
    for _, decoded in found[1:]:
        assert float((decoded - found[0][1]).abs().max()) < 1e-5


def test_settings_out_of_range_are_told():
    for wrong in ({"bits": 1}, {"latent": 0}, {"companding": "none"}, {"levels": 99}, {"latent": 4096}):
        with pytest.raises(InvalidArgument):
            WallocConfig(**wrong)
    with pytest.raises(InvalidArgument, match="NaN"):
        trained().compress(torch.full((3, 8, 8), math.nan))
