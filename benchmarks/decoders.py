"""Every decoder that reads what others may have damaged, each with a small input that it takes milliseconds for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TEXT = b"What is written twice is written twice. " * 8
SEED = 7


@dataclass(frozen=True)
class Target:
    """A decoder and one of its inputs.

    Attributes:
        decode: Bytes to what they stand for; raises a typed error for what it does not take.
        valid: An input that it takes.
        container: Whether the input is a container, so that checksums can be made anew.
        checked: Whether a checksum of the content stands against forgery too; what reads bare streams has none at all.
    """

    decode: Callable[[bytes], Any]
    valid: bytes
    container: bool = True
    checked: bool = True


def targets() -> dict[str, Callable[[], Target]]:
    """How to make each, by name; what needs a model that is not here is left out."""
    made: dict[str, Callable[[], Target]] = {"container": _container, "blocks": _blocks}
    made |= {name: lambda name=name: _lossless(name) for name in ("raw", "deflate", "bz2", "xz", "bytes", "programs")}
    made |= {
        "image_vq": _image_vq, "walloc, pictures": _walloc_picture, "walloc, sounds": _walloc_sound, "features": _features, "mesh": _mesh,
        **{f"table, {coder}": lambda coder=coder: _table(coder) for coder in ("range", "ans", "reference")},
        "factorised prior": _factorised, "Gaussian prior": _gaussian, "one program": _program, "text of a program": _program_text,
        **{f"windows, {mode}": lambda mode=mode: _windows(mode) for mode in ("exact", "delay", "greedy")},
        "arithmetic tokens": _arithmetic, "PNG to code": _png, "WAV to code": _wav, "OBJ to code": _obj, "npy to code": _npy,
    }  # fmt: skip
    if _stories().is_dir():
        made["text"] = _text
    return made


def _stories() -> Path:
    return Path(os.environ.get("TERSOR_DATA", "")) / "models" / "stories260k"


def _container() -> Target:
    from tersor.coding.entropy import Container

    data = Container(3, {"size": 12, "crc32": 1, "names": ["a", {"b": None}]}, (b"abc", b"", bytes(40))).to_bytes()
    return Target(lambda data: Container.from_bytes(data).to_bytes(), data, checked=False)


def _blocks() -> Target:
    from tersor import coding

    def decode(data: bytes) -> bytes:
        sink = io.BytesIO()
        coding.decode_stream(io.BytesIO(data), sink)
        return sink.getvalue()

    packed = io.BytesIO()
    coding.encode_stream(io.BytesIO(TEXT), packed, codec="deflate", block=120)
    return Target(decode, packed.getvalue(), container=False)


def _lossless(name: str) -> Target:
    from tersor import coding

    data = bytes(range(40)) * 3 + bytes(range(90, 50, -1)) * 4 if name == "programs" else TEXT
    return Target(coding.decode, coding.encode(data, codec=name))


def _text() -> Target:
    import tersor
    from tersor import coding

    model = tersor.load(str(_stories()))
    return Target(lambda data: coding.decode(data, model=model), coding.encode(b"Once upon", codec="text", model=model))


def _trained(codec: Any, content: bytes) -> Target:
    """A codec that loses something has no checksum of what it gives back: under a forged one it gives back something else."""
    from tersor import coding

    return Target(lambda data: coding.decode(data, model=codec), coding.encode(content, model=codec), checked=False)


@cache
def _picture(side: int = 32) -> Any:
    import torch

    random = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(1, 3, side // 8, side // 8, generator=random)
    return torch.round(torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")[0] * 255).to(torch.uint8)


def _image_vq() -> Target:
    from tersor.coding.image_vq import ImageVQCodec, VQConfig
    from tersor.coding.image_vq.training import ImageVQJob
    from tersor.coding.pictures import write_picture
    from tersor.coding.training import run_job

    job = ImageVQJob([_picture(64)], VQConfig(stride=8, codes=16, smaller="4", width=8, embedding=4), 10, batch=2)
    run_job(job)
    return _trained(ImageVQCodec(job.module, "0" * 64), write_picture(_picture()))


def _walloc_picture() -> Target:
    from tersor.coding.pictures import write_picture
    from tersor.coding.training import run_job
    from tersor.coding.walloc import WallocCodec, WallocConfig
    from tersor.coding.walloc.training import WallocJob

    job = WallocJob([_picture(64).float() / 255 - 0.5], WallocConfig(levels=3, latent=6, bits=4, width=16, blocks=1), 3, batch=2)
    run_job(job)
    return _trained(WallocCodec(job.module, "0" * 64), write_picture(_picture()))


@cache
def _sound() -> Any:
    import torch

    time = torch.arange(2048, dtype=torch.float64)
    return torch.round(9000 * torch.sin(0.03 * time) * torch.cos(0.002 * time)).to(torch.int16)[None]


def _walloc_sound() -> Target:
    from tersor.coding.pictures import write_sound
    from tersor.coding.training import run_job
    from tersor.coding.walloc import WallocCodec, WallocConfig
    from tersor.coding.walloc.training import WallocJob

    config = WallocConfig(channels=1, levels=4, latent=4, bits=4, width=16, blocks=1, ndim=1)
    job = WallocJob([_sound().float() / 65534], config, 3, rate=8000, batch=2)
    run_job(job)
    return _trained(WallocCodec(job.module, "0" * 64, 8000), write_sound(_sound(), 8000))


def _features() -> Target:
    from tersor.coding.features import EntropicStudent, cifar_resnet
    from tersor.coding.features.training import FeatureCodec
    from tersor.coding.pictures import write_picture

    student = EntropicStudent(cifar_resnet(8), 4)
    student.prior.update()
    return _trained(FeatureCodec(student, "0" * 64), write_picture(_picture()))


def _mesh() -> Target:
    from tersor.coding.mesh import MeshJob, MeshSettings
    from tersor.coding.training import run_job

    job = MeshJob(MeshSettings(code=4, bits=6, width=32, latent=4, shapes=6, pairs=4), 30)
    run_job(job)
    codec = job.module.codec()
    codec.generator.resolution = 8
    return _trained(codec, OBJ)


def _table(coder: Any) -> Target:
    import numpy as np

    from tersor.coding.entropy import IntTable, decode_symbols, encode_symbols

    random = np.random.default_rng(SEED)
    table = IntTable.from_pmf(random.dirichlet(np.full(40, 0.3)), 16)
    symbols = random.choice(40, size=60, p=table.weights / table.weights.sum())
    return _bare(lambda data: decode_symbols(data, table, 60, coder=coder).tolist(), encode_symbols(symbols, table, coder=coder))


def _factorised() -> Target:
    import torch

    from tersor.coding.entropy import EntropyBottleneck

    prior = EntropyBottleneck(4).eval()
    prior.update()
    latent = 9 * torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(SEED))
    # Far outside of the tables: the escapes are read as well.
    latent[0, 0, 0] = 1e4
    return _bare(lambda data: prior.decompress(data, latent.shape).tolist(), prior.compress(latent))


def _gaussian() -> Target:
    import torch

    from tersor.coding.entropy import GaussianConditional

    prior = GaussianConditional().eval()
    prior.update()
    random = torch.Generator().manual_seed(SEED)
    scales = torch.rand(32, generator=random) * 4 + 0.2
    latent = scales * torch.randn(32, generator=random)
    latent[0] = -1e4
    return _bare(lambda data: prior.decompress(data, scales).tolist(), prior.compress(latent, scales))


def _bare(decode: Callable[[bytes], Any], data: bytes) -> Target:
    return Target(decode, data, container=False, checked=False)


def _a_program() -> Any:
    from tersor.coding import programs

    data = bytes(value for pair in zip(range(40), range(90, 50, -1), strict=True) for value in pair) + bytes(range(9)) * 5
    found = programs.Search()(data)
    assert found is not None
    return found


def _program() -> Target:
    from tersor.coding.programs import serialise

    return _bare(lambda data: serialise.from_bytes(data).run(), serialise.to_bytes(_a_program()))


def _program_text() -> Target:
    from tersor.coding.programs import Program

    return _bare(lambda data: Program.parse(data.decode("latin-1")).run(), str(_a_program()).encode())


@cache
def _first_model() -> Any:
    from tersor.coding.windows import NGramByteLM

    return NGramByteLM(TEXT, 2)


def _windows(mode: Any) -> Target:
    import numpy as np

    from tersor.coding.windows import EqualInfoTokenizer

    tokenizer = EqualInfoTokenizer(_first_model(), mode=mode)
    return _bare(lambda data: tokenizer.decode(np.frombuffer(data, np.uint8).astype(np.int64)), _as_bytes(tokenizer.encode(TEXT)))


def _arithmetic() -> Target:
    import numpy as np

    from tersor.coding.windows import ArithmeticTokenizer

    tokenizer = ArithmeticTokenizer(_first_model())
    return _bare(lambda data: tokenizer.decode(np.frombuffer(data, np.uint8).astype(np.int64), 20), _as_bytes(tokenizer.encode(TEXT[:20])))


def _as_bytes(tokens: Any) -> bytes:
    return bytes(tokens.tolist())


def _png() -> Target:
    from tersor.coding.pictures import read_picture, write_picture

    return _bare(lambda data: read_picture(data).tolist(), write_picture(_picture()))


def _wav() -> Target:
    from tersor.coding.pictures import read_sound, write_sound

    def decode(data: bytes) -> Any:
        sound, rate = read_sound(data)
        return sound.tolist(), rate

    return _bare(decode, write_sound(_sound()[:, :200], 8000))


OBJ = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def _obj() -> Target:
    from tersor.coding.mesh import read_geometry

    def decode(data: bytes) -> Any:
        geometry = read_geometry(data)
        return geometry.vertices.tolist(), geometry.faces.tolist()

    return _bare(decode, OBJ)


def _npy() -> Target:
    import numpy as np

    from tersor.coding.features.training import _pictures

    file = io.BytesIO()
    np.save(file, _picture().numpy()[None])
    return _bare(lambda data: _pictures(data, (32, 32)).tolist(), file.getvalue())
