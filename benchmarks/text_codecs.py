"""Lossless codecs on standard corpora: bits a byte and speed of tersor's models beside gzip, xz, zstd, brotli and PPMd.

Every codec takes the same bytes and its output counts whole, headers included; every result is decoded and compared. Rates that count
the decoder's model beside the file are given for codecs that have one.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import lzma
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import common

CANTERBURY = (
    "alice29.txt", "asyoulik.txt", "cp.html", "fields.c", "grammar.lsp", "kennedy.xls", "lcet10.txt", "plrabn12.txt", "ptt5", "sum",
    "xargs.1",
)  # fmt: skip
FILES = (
    *(f"corpora/canterbury/{name}" for name in CANTERBURY), "corpora/xml.zip", "corpora/ooffice.zip", "dna/ecoli.fa.gz",
    "audio/fsdd_600.zip", "text/wikitext2.test.raw", "random",
)  # fmt: skip
TEXTS = ("corpora/canterbury/alice29.txt", "text/wikitext2.test.raw")
PEERS = ("zstandard", "brotli", "pyppmd")


@dataclass(frozen=True)
class Codec:
    """A codec by name: how it encodes, how it decodes a result to so many bytes, and the bytes of a model that the decoder needs."""

    name: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes, int], bytes]
    model_bytes: int = 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = common.parser(__doc__, repeats=1, threads=1)
    flags.add_argument("--bytes", type=int, default=1 << 20, help="bytes of each file to take")
    flags.add_argument("--model", default="smollm2-135m", help="language model for the text rows; empty for none")
    flags.add_argument("--model-bytes", type=int, default=16384, help="bytes of each text that the language model is given")
    return flags


def read(folder: Path, name: str, size: int) -> bytes:
    """The first bytes of a file, of the largest member of an archive, or of a sound's samples."""
    if name == "random":
        import numpy as np

        return np.random.default_rng(0).bytes(min(size, 1 << 18))
    path = folder / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            member = max(archive.infolist(), key=lambda info: info.file_size)
            return archive.read(member)[:size]
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return file.read(size)


def codecs() -> Iterator[Codec]:
    """Ours without a model, the standard library, and the peers that are installed."""
    from tersor import coding

    yield Codec("tersor", coding.encode, lambda data, size: coding.decode(data))
    yield Codec("tersor bytes", lambda data: coding.encode(data, codec="bytes", verify=False), lambda data, size: coding.decode(data))
    yield Codec("gzip -9", lambda data: gzip.compress(data, 9), lambda data, size: gzip.decompress(data))
    yield Codec("bzip2", bz2.compress, lambda data, size: bz2.decompress(data))
    yield Codec("xz -9e", lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lambda data, size: lzma.decompress(data))
    if installed("zstandard"):
        import zstandard

        yield Codec(
            "zstd --ultra -22", lambda data: zstandard.ZstdCompressor(level=22).compress(data),
            lambda data, size: zstandard.ZstdDecompressor().decompress(data, max_output_size=size),
        )  # fmt: skip
    if installed("brotli"):
        import brotli

        yield Codec("brotli -11", lambda data: brotli.compress(data, quality=11), lambda data, size: brotli.decompress(data))
    if installed("pyppmd"):
        import pyppmd

        yield Codec("PPMd 7, order 8", ppmd_encode, lambda data, size: pyppmd.Ppmd7Decoder(8, 64 << 20).decode(data, size))


def ppmd_encode(data: bytes) -> bytes:
    """PPMd variant H at order 8."""
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(8, 64 << 20)
    return bytes(encoder.encode(data) + encoder.flush())


def installed(name: str) -> bool:
    """Whether a package is here."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def language_model(name: str) -> Codec:
    """Text by a language model, its weights in float32 counted as the decoder's model."""
    import tersor
    from tersor import coding

    model = tersor.load(name)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.module.state_dict().values())
    return Codec(
        f"tersor text, {name}", lambda data: coding.encode(data, codec="text", model=model, verify=False),
        lambda data, size: coding.decode(data, model=model), size,
    )  # fmt: skip


def measured(codec: Codec, name: str, data: bytes) -> common.Row:
    """One codec on one file; processor time, so that a busy machine does not show."""
    began = time.process_time()
    packed = codec.encode(data)
    middle = time.process_time()
    if codec.decode(packed, len(data)) != data:
        raise SystemExit(f"{codec.name} did not give {name} back")
    end = time.process_time()
    size = len(data)
    return {
        "file": Path(name).name, "bytes": size, "codec": codec.name, "compressed": len(packed), "bits_per_byte": 8 * len(packed) / size,
        "with_model": 8 * (len(packed) + codec.model_bytes) / size if codec.model_bytes else None,
        "encode_mb_s": size / 1e6 / max(middle - began, 1e-6), "decode_mb_s": size / 1e6 / max(end - middle, 1e-6),
    }  # fmt: skip


def coders(size: int, repeats: int) -> Iterator[common.Row]:
    """The entropy coder by itself: tersor's calls beside constriction's own, on symbols of a skewed table."""
    import numpy as np
    from constriction import stream

    from tersor.coding.entropy import IntTable, decode_symbols, encode_symbols

    random = np.random.default_rng(0)
    table = IntTable.from_pmf(random.dirichlet(np.full(256, 0.3)), 16)
    symbols = random.choice(256, size=size, p=table.weights / table.weights.sum()).astype(np.int32)
    model = stream.model.Categorical(table.weights / table.weights.sum(), perfect=False)
    ideal = table.ideal_bits(symbols)

    def direct() -> Any:
        encoder = stream.queue.RangeEncoder()
        encoder.encode(symbols, model)
        return encoder.get_compressed()

    calls = {
        "tersor range": (lambda: encode_symbols(symbols, table), lambda data: decode_symbols(data, table, size)),
        "constriction range": (direct, lambda data: stream.queue.RangeDecoder(data).decode(model, size)),
        "tersor ans": (lambda: encode_symbols(symbols, table, coder="ans"), lambda data: decode_symbols(data, table, size, coder="ans")),
    }
    for name, (encode, decode) in calls.items():
        times = []
        for _ in range(repeats):
            began = time.process_time()
            data = encode()
            middle = time.process_time()
            if not np.array_equal(decode(data), symbols):
                raise SystemExit(f"{name} did not give the symbols back")
            times.append((middle - began, time.process_time() - middle))
        packed = len(data) if isinstance(data, bytes) else data.nbytes
        speeds = [size / 1e6 / max(common.median(part), 1e-6) for part in zip(*times, strict=True)]
        yield {
            "file": f"{size:,} symbols", "bytes": size, "codec": name, "compressed": packed, "bits_per_byte": 8 * packed / size,
            "over_ideal": (8 * packed - 64) / ideal - 1, "encode_mb_s": speeds[0], "decode_mb_s": speeds[1],
        }  # fmt: skip


def totals(rows: list[common.Row]) -> Iterator[common.Row]:
    """One row a codec over all files that every codec without a model was given."""
    for name in dict.fromkeys(row["codec"] for row in rows if row.get("with_model") is None):
        mine = [row for row in rows if row["codec"] == name and row["file"] != "random"]
        size, packed = (sum(row[key] for row in mine) for key in ("bytes", "compressed"))
        yield {"file": "all but random", "bytes": size, "codec": name, "compressed": packed, "bits_per_byte": 8 * packed / size}


def claims(rows: list[common.Row], all_files: list[common.Row]) -> Iterator[common.Claim]:
    """What the codecs are for."""
    bits = {row["codec"]: row["bits_per_byte"] for row in all_files}
    yield common.Claim("all files, tersor over xz", bits["tersor"] / bits["xz -9e"], 1.0)
    if "PPMd 7, order 8" in bits:
        yield common.Claim("all files, tersor over PPMd", bits["tersor"] / bits["PPMd 7, order 8"], 1.0)
    for row in rows:
        if row["codec"] == "tersor" and row["file"] == "random":
            yield common.Claim("random bytes, growth in bytes", row["compressed"] - row["bytes"], 63)


def run(flags: argparse.Namespace) -> int:
    """Every codec on every file, then the language model on short texts beside all others on the same bytes."""
    folder = os.environ.get("TERSOR_DATA")
    if not folder:
        raise SystemExit("set TERSOR_DATA to the folder with corpora/, dna/, audio/ and text/")
    session = common.Session("text_codecs", flags)
    size, text_size = (16384, 1024) if flags.quick else (flags.bytes, flags.model_bytes)
    known: list[Any] = list(codecs())
    for name in FILES:
        data = read(Path(folder), name, size)
        session.rows += [measured(codec, name, data) for codec in known]
        session.say(f"{name}, {len(data)} bytes")
    all_files = list(totals(session.rows))
    session.claims += claims(session.rows, all_files)
    session.rows += all_files
    entropy = list(coders(size // 16 if flags.quick else 1_000_000, max(session.repeats, 3)))
    session.rows += entropy
    session.claims.append(
        common.Claim("entropy coding, bits beyond 64 over the information", max(row["over_ideal"] for row in entropy), 0.001)
    )
    if flags.model:
        model = language_model(flags.model)
        for name in TEXTS:
            data = read(Path(folder), name, text_size)
            session.rows += [{**measured(codec, name, data), "file": f"{Path(name).name}, beginning"} for codec in (*known, model)]
            session.say(f"{name}, {len(data)} bytes, language model")
            alone = session.rows[-1]["bits_per_byte"]
            best = min(row["bits_per_byte"] for row in session.rows[-1 - len(known) : -1])
            session.claims.append(
                common.Claim(f"{Path(name).name}, {text_size} bytes: language model over the best other", alone / best, 0.75)
            )
    session.peer_versions({name: version(name) for name in PEERS if installed(name)})
    session.notes += [f"{name} is not installed and was left out." for name in PEERS if not installed(name)]
    session.notes += [
        "MB/s of processor time, one thread. tersor without a suffix tries every codec and decodes the result before it returns it.",
        "over_ideal leaves out 64 bits a stream, as words are whole.",
        "with_model counts the weights of the language model in float32 as part of the file.",
    ]
    session.data += list(FILES)
    return session.finish()


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
