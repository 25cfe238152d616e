"""Lossless codecs on standard corpora: bits a byte and speed of tersor's models beside gzip, xz, zstd, brotli and PPMd.

Every codec takes the same bytes and its output counts whole, headers included. What ours wrote is decoded by a new process, what others
wrote by this one, and compared. ``with_model`` counts the decoder's model as part of the file.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import lzma
import os
import sys
import tempfile
import time
import zipfile
import zlib
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
# Beginnings that language models are given, and their bytes.
TEXTS = (("text/wikitext2.test.raw", 20_000),)
# Number of the codec of texts in files.
_TEXT = 5
PEERS = ("zstandard", "brotli", "pyppmd")


@dataclass(frozen=True)
class Codec:
    """A codec by name.

    Attributes:
        name: In the table.
        encode: To the bytes of a file.
        decode: To so many bytes; ``None`` for ours, which a new process decodes.
        model: Name of a language model that the decoder needs.
        model_bytes: Its bytes.
        ideal: Bits that the model itself gives to the data.
    """

    name: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes, int], bytes] | None
    model: str = ""
    model_bytes: int = 0
    ideal: Callable[[bytes], float] | None = None


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = common.parser(__doc__, repeats=1, threads=1)
    flags.add_argument("--bytes", type=int, default=1 << 18, help="bytes of each file to take")
    flags.add_argument("--models", nargs="*", default=["smollm2-135m"], help="language models for the rows of texts")
    flags.add_argument("--context", type=int, default=256, help="tokens of a chunk of text; up to 1024 is smaller, and takes longer")
    flags.add_argument("--model-bytes", type=int, help=f"bytes of each text that they are given; default: {[size for _, size in TEXTS]}")
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

    yield Codec("tersor", coding.encode, None)
    yield Codec("tersor bytes", lambda data: coding.encode(data, codec="bytes", verify=False), None)
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


def language_model(name: str, threads: int, context: int) -> Codec:
    """Text by a language model in one group of lanes, the model counted in the type that it computes in."""
    import torch

    import tersor
    from tersor.coding.entropy import Container
    from tersor.coding.text import LanguageModelCoder
    from tersor.data import folder

    torch.set_num_threads(threads)
    place = name if name != "stories260k" else str(folder("models") / name)
    model = tersor.load(place)
    # Some 4 bytes a token: a lane for every chunk, up to 24.
    coder = LanguageModelCoder(model, lanes=24, context=context)

    def encode(data: bytes) -> bytes:
        header, streams = coder.encode(data, verify=False)
        return Container(_TEXT, {**header, "size": len(data), "crc32": zlib.crc32(data)}, tuple(streams)).to_bytes()

    return Codec(f"tersor text, {name}, {context} tokens", encode, None, place, model.nbytes, coder.cross_entropy_bits)


def measured(codec: Codec, name: str, data: bytes, files: Files) -> common.Row:
    """One codec on one file; processor time, so that a busy machine does not show. What ours wrote is left in ``files``."""
    began = time.process_time()
    packed = codec.encode(data)
    encode = time.process_time() - began
    size, decode = len(data), None
    if codec.decode is not None:
        began = time.process_time()
        if codec.decode(packed, size) != data:
            raise SystemExit(f"{codec.name} did not give {name} back")
        decode = time.process_time() - began
    row: common.Row = {
        "file": Path(name).name, "bytes": size, "codec": codec.name, "compressed": len(packed), "bits_per_byte": 8 * len(packed) / size,
        "with_model": 8 * (len(packed) + codec.model_bytes) / size, "encode_mb_s": size / 1e6 / max(encode, 1e-6),
        "decode_mb_s": None if decode is None else size / 1e6 / max(decode, 1e-6),
    }  # fmt: skip
    if codec.ideal is not None:
        row["over_ideal"] = over_ideal(packed, codec.ideal(data))
    if decode is None:
        files.keep(row, codec.model, packed, data)
    return row


def over_ideal(packed: bytes, ideal: float) -> float:
    """What the coder adds to the model's information: all but a chunk's two bytes of length and, on average, half of its last one."""
    from tersor.coding.entropy import Container

    streams = Container.from_bytes(packed).streams
    return (8 * sum(len(stream) - 2.5 for stream in streams)) / ideal - 1


class Files:
    """What ours wrote, for new processes to decode: one process for all that need the same model, equal files once."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        # By model and content: the rows of a file, its place, and the digest of what must come out.
        self.kept: dict[str, dict[bytes, tuple[list[common.Row], Path, str]]] = {}
        self.right = self.wrong = 0

    def keep(self, row: common.Row, model: str, packed: bytes, data: bytes) -> None:
        """Write one, and remember what must come out."""
        same = self.kept.setdefault(model, {})
        if packed not in same:
            path = self.folder / f"{len(self.kept)}-{len(same)}.tersor"
            path.write_bytes(packed)
            same[packed] = ([], path, hashlib.sha256(data).hexdigest())
        same[packed][0].append(row)

    def decode(self) -> None:
        """Decode all, and complete their rows."""
        for model, same in self.kept.items():
            kept = list(same.values())
            request = {"model": model, "files": [str(path) for _, path, _ in kept]}
            done = common.run_job("jobs/decode.py", request, threads=self.threads)
            for (rows, _, wanted), found in zip(kept, done.reply["files"], strict=True):
                right = found["sha256"] == wanted
                self.right, self.wrong = self.right + right, self.wrong + (not right)
                for row in rows:
                    row["decode_mb_s"] = row["bytes"] / 1e6 / max(found["seconds"], 1e-6)


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
    for name in dict.fromkeys(row["codec"] for row in rows):
        mine = [row for row in rows if row["codec"] == name and row["file"] != "random"]
        size, packed = (sum(row[key] for row in mine) for key in ("bytes", "compressed"))
        yield {
            "file": "all but random",
            "bytes": size,
            "codec": name,
            "compressed": packed,
            "bits_per_byte": 8 * packed / size,
            "with_model": 8 * packed / size,
        }


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
    """Every codec on every file, then language models on short texts beside all others on the same bytes."""
    place = os.environ.get("TERSOR_DATA")
    if not place:
        raise SystemExit("set TERSOR_DATA to the folder with corpora/, dna/, audio/ and text/")
    folder, session = Path(place), common.Session("text_codecs", flags)
    size = 16384 if flags.quick else flags.bytes
    known = list(codecs())
    with tempfile.TemporaryDirectory() as temporary:
        files = Files(Path(temporary), flags.threads)
        for name in FILES:
            data = read(folder, name, size)
            session.rows += [measured(codec, name, data, files) for codec in known]
            session.say(f"{name}, {len(data)} bytes")
        all_files = list(totals(session.rows))
        session.claims += claims(session.rows, all_files)
        session.rows += all_files
        throughput(session, size // 16 if flags.quick else 1_000_000)
        texts(session, folder, known, files)
        files.decode()
    session.claims.append(common.Claim(f"of {files.right + files.wrong} files, not given back exactly by a new process", files.wrong, 0))
    session.peer_versions({name: version(name) for name in PEERS if installed(name)})
    session.notes += [f"{name} is not installed and was left out." for name in PEERS if not installed(name)]
    session.notes += [
        "MB/s of processor time, one thread. tersor without a suffix tries every codec and decodes the result before it returns it.",
        "over_ideal is what the entropy coder adds to the information of its tables or, for text, to the cross-entropy of the language "
        "model in one pass; below it where a model that is surprised pays at most 24 bits for a token. It leaves out 64 bits a stream of "
        "words, and two and a half bytes a chunk of text: its length and, on average, half of its last byte.",
        "with_model counts the decoder's language model in float32 as part of the file; all other codecs have no weights.",
    ]
    session.data += list(FILES)
    return session.finish()


def throughput(session: common.Session, symbols: int) -> None:
    """The rows of the entropy coder alone."""
    rows = list(coders(symbols, max(session.repeats, 3)))
    session.rows += rows
    session.claims.append(
        common.Claim("entropy coding, bits beyond 64 over the information", max(row["over_ideal"] for row in rows), 0.001)
    )
    ours, theirs = (next(row for row in rows if row["codec"] == f"{name} range") for name in ("tersor", "constriction"))
    for way in ("encode", "decode"):
        ratio = ours[f"{way}_mb_s"] / theirs[f"{way}_mb_s"]
        session.claims.append(common.Claim(f"range coder, {way} speed over constriction called directly", ratio, 0.5, at_least=True))


def texts(session: common.Session, folder: Path, known: list[Codec], files: Files) -> None:
    """Beginnings of texts by every codec, language models among them."""
    flags = session.flags
    models = [language_model(name, flags.threads, flags.context) for name in flags.models]
    for name, usual in TEXTS if models else ():
        data = read(folder, name, 1024 if flags.quick else flags.model_bytes or usual)
        rows = []
        for codec in (*known, *models):
            rows.append(measured(codec, name, data, files))
            rows[-1]["file"] += ", beginning"
            session.say(f"{name}, {len(data)} bytes, {codec.name}")
        session.rows += rows
        rivals = [row["bits_per_byte"] for row in rows if not row["codec"].startswith("tersor")]
        alone, said = rows[-1], f"{Path(name).name}, {len(data)} bytes, {flags.models[-1]}"
        session.claims.append(common.Claim(f"{said} over the best other", alone["bits_per_byte"] / min(rivals), 0.75))
        session.claims.append(common.Claim(f"{said}, entropy coding over the cross-entropy", alone["over_ideal"], 0.001))


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
