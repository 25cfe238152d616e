"""Lossy pictures: rate and distortion of tersor's trained codecs beside JPEG, WebP, AVIF and JPEG XL at equal bytes.

Rates are those of whole files, headers included; every picture is decoded from its bytes alone. The trained codecs see none of the
pictures that they are measured on: photographs 17 to 24 of the Kodak set, and the test pictures of CIFAR-10 in sheets of 8 by 8.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import common

# What is trained if it is not there yet: folder, codec, settings, and whether on CIFAR-10.
MODELS: tuple[tuple[str, str, dict[str, str], bool], ...] = (
    ("image_vq", "image_vq", {}, False),
    ("walloc", "walloc", {}, False),
    ("walloc-fine", "walloc", {"latent": "24", "bits": "6"}, False),
    ("walloc-cifar", "walloc", {}, True),
    ("image_vq-cifar", "image_vq", {"stride": "4", "codes": "256", "smaller": "64,16", "width": "32"}, True),
)
QUALITIES = {"JPEG": (1, 5, 15, 40, 75), "WebP": (0, 10, 40, 75), "AVIF": (1, 12, 30, 55), "JPEG XL": (1, 10, 40, 75)}
SHEET = 8


@dataclass(frozen=True)
class Codec:
    """A codec at one setting: pictures uint8 ``[3, height, width]`` to the bytes of a file and back."""

    family: str
    setting: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    model_bytes: int = 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = common.parser(__doc__, repeats=1, threads=1)
    flags.add_argument("--pictures", type=int, default=8, help="photographs of Kodak, at most 8, and sheets of CIFAR-10, at most 4")
    flags.add_argument("--models", type=Path, default=common.ROOT / ".codecs", help="folder of trained codecs; those missing are trained")
    flags.add_argument("--steps", type=int, help="steps of those trainings; default: those of tersor train-codec")
    return flags


def classical(session: common.Session) -> Iterator[Codec]:
    """The codecs of Pillow; those that are missing are named in the record."""
    from PIL import features

    missing = []
    session.versions["pillow"] = version("pillow")
    for family, name in (("JPEG", "jpg"), ("WebP", "webp"), ("AVIF", "avif")):
        if not features.check(name):
            missing.append(f"{family} is left out: this Pillow was built without it.")
            continue
        for quality in QUALITIES[family]:
            yield by_pillow(family, family, quality)
    try:
        import pillow_jxl  # noqa: F401 - it registers the format
    except ImportError:
        missing.append("JPEG XL is left out: pip install pillow-jxl-plugin brings it.")
    else:
        session.versions["pillow-jxl-plugin"] = version("pillow-jxl-plugin")
        for quality in QUALITIES["JPEG XL"]:
            yield by_pillow("JPEG XL", "JXL", quality)
    session.notes += missing


def by_pillow(family: str, name: str, quality: int) -> Codec:
    """A codec of Pillow at a quality."""
    from PIL import Image

    from tersor.coding.pictures import read_picture

    def encode(picture: Any) -> bytes:
        out = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(out, name, quality=quality)
        return out.getvalue()

    return Codec(family, f"quality {quality}", encode, read_picture)


def trained(folder: Path, session: common.Session, steps: int | None, cifar: bool) -> Iterator[Codec]:
    """Tersor's codecs, trained first where they are missing."""
    from tersor.coding.training import is_codec, load_codec, train_codec
    from tersor.data import folder as data_folder

    for name, kind, options, small in MODELS:
        if small != cifar:
            continue
        place = folder / name
        if not is_codec(place):
            session.say(f"training {name}")
            source = data_folder("images") / "cifar10_lossless_part.npz" if small else None
            train_codec(kind, place, data=source, steps=steps, options=options)
        codec: Any = load_codec(place)
        size = (place / "codec.safetensors").stat().st_size
        done = json.loads((place / "codec.json").read_text(encoding="utf-8"))["training"]["steps"]
        session.notes.append(f"{name} was trained for {done:,} steps.")
        if kind == "image_vq":
            for codes in codec.config.sizes:
                yield by_tersor(f"tersor {name}", f"{codes} codewords", codec.with_codes(codes), size)
        else:
            yield by_tersor(f"tersor {name}", f"{codec.config.latent} channels, {codec.config.bits} bits", codec, size)


def by_tersor(family: str, setting: str, codec: Any, size: int) -> Codec:
    """A trained codec, through the same files as the command line."""
    from tersor import coding
    from tersor.coding.pictures import read_picture, write_picture

    return Codec(
        family, setting, lambda picture: coding.encode(write_picture(picture), model=codec, verify=False),
        lambda data: read_picture(coding.decode(data, model=codec)), size,
    )  # fmt: skip


def measured(codec: Codec, data: str, pictures: list[Any]) -> common.Row:
    """Means over pictures; processor time, so that a busy machine does not show."""
    from tersor.coding.quality import ms_ssim, psnr

    kept: dict[str, list[float]] = {key: [] for key in ("bpp", "psnr", "ms_ssim", "bytes", "encode_s", "decode_s")}
    for picture in pictures:
        began = time.process_time()
        packed = codec.encode(picture)
        middle = time.process_time()
        decoded = codec.decode(packed)
        end = time.process_time()
        x, y = picture.float() / 255, decoded.float() / 255
        values = (8 * len(packed) / x[0].numel(), psnr(x, y), ms_ssim(x[None], y[None]), len(packed), middle - began, end - middle)
        for key, value in zip(kept, values, strict=True):
            kept[key].append(value)
    means = {key: statistics.fmean(values) for key, values in kept.items()}
    return {"data": data, "codec": codec.family, "setting": codec.setting, **means, "model_bytes": codec.model_bytes or None}


def photographs(count: int) -> list[Any]:
    """Of Kodak, those that no default training sees."""
    from tersor.coding.pictures import KODAK_HELD_OUT, kodak

    return kodak(KODAK_HELD_OUT[:count])


def sheets(count: int) -> list[Any]:
    """Test pictures of CIFAR-10, 64 to a sheet of 256 x 256: alone they are smaller than the headers of most codecs."""
    import numpy as np
    import torch

    from tersor.data import folder

    with np.load(folder("images") / "cifar10_lossless_part.npz", allow_pickle=False) as file:
        pictures = torch.from_numpy(file["x_test"])
    each = SHEET * SHEET
    count = min(count, len(pictures) // each)
    tiles = pictures[: count * each].reshape(count, SHEET, SHEET, 3, 32, 32).permute(0, 3, 1, 4, 2, 5)
    return list(tiles.reshape(count, 3, SHEET * 32, SHEET * 32))


def at_rate(rows: list[common.Row], rate: float, key: str) -> float | None:
    """A codec's quality at a rate, between its two nearest settings; ``None`` outside of what it reaches."""
    points = sorted((row["bpp"], row[key]) for row in rows)
    for (low, below), (high, above) in pairwise(points):
        if low <= rate <= high:
            return float(below + (above - below) * (rate - low) / max(high - low, 1e-12))
    return None


def compare(rows: list[common.Row]) -> None:
    """Add to each of our rows what the classical codecs give at its very bytes."""
    families = [family for family in QUALITIES if any(row["codec"] == family for row in rows)]
    for row in rows:
        if row["codec"].startswith("tersor"):
            for key in ("psnr", "ms_ssim"):
                for family in families:
                    row[f"{family} {key}"] = at_rate([other for other in rows if other["codec"] == family], row["bpp"], key)


def floors(rows: list[common.Row]) -> str:
    """How small each classical codec can make these pictures."""
    least = {family: min((row["bpp"] for row in rows if row["codec"] == family), default=None) for family in QUALITIES}
    return ", ".join(f"{family} {rate:.3g}" for family, rate in least.items() if rate is not None)


def claims(rows: list[common.Row], data: str) -> Iterator[common.Claim]:
    """That the codec of few indices goes where headers and blocks keep the others from going."""
    ours = min((row["bpp"] for row in rows if row["codec"].startswith("tersor image_vq")), default=None)
    for family in QUALITIES:
        theirs = min((row["bpp"] for row in rows if row["codec"] == family), default=None)
        if ours is not None and theirs is not None:
            yield common.Claim(f"{data}: smallest rate of image_vq over that of {family}", ours / theirs, 1.0)


def draw(rows: list[common.Row], data: str, folder: Path) -> None:
    """Quality over rate, both measures."""
    from tersor.papers.plots import line_chart

    stem = data.partition(" ")[0]
    for key, label in (("psnr", "PSNR, dB"), ("ms_ssim", "MS-SSIM")):
        named = [{"bits a pixel": row["bpp"], label: row[key], "codec": row["codec"]} for row in rows]
        line_chart(named, "bits a pixel", label, folder / f"image_codecs-{stem}-{key}.svg", color="codec", title=data, log="x")


def side_by_side(codecs: list[Codec], picture: Any, rate: float, path: Path) -> None:
    """The picture and what each family makes of it at its setting nearest to ``rate`` bits a pixel, with names."""
    import torch
    from PIL import Image, ImageDraw

    shown = [("original", picture)]
    for family in dict.fromkeys(codec.family for codec in codecs):
        files = [(codec, codec.encode(picture)) for codec in codecs if codec.family == family]
        codec, packed = min(files, key=lambda pair: abs(8 * len(pair[1]) / picture[0].numel() - rate))
        shown.append((f"{family}, {8 * len(packed) / picture[0].numel():.3f} bpp", codec.decode(packed)))
    across = 2
    height, width = picture.shape[1:]
    sheet = Image.new("RGB", (across * width, -(-len(shown) // across) * (height + 24)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, values) in enumerate(shown):
        left, top = index % across * width, index // across * (height + 24)
        draw.text((left + 4, top + 6), name, fill="black")
        sheet.paste(Image.fromarray(torch.as_tensor(values).permute(1, 2, 0).contiguous().numpy()), (left, top + 24))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Shrunk, as only what a glance shows is meant, and in a JPEG finer than anything that it shows.
    sheet.resize((sheet.width // 2, sheet.height // 2)).save(path, "JPEG", quality=92)


def run(flags: argparse.Namespace) -> int:
    """Every codec on photographs and on sheets, then the plots and the picture."""
    if not os.environ.get("TERSOR_DATA"):
        raise SystemExit("set TERSOR_DATA to the folder with images/kodak and images/cifar10_lossless_part.npz")
    session = common.Session("image_codecs", flags)
    count, steps = (1, flags.steps or 30) if flags.quick else (min(flags.pictures, 8), flags.steps)
    folder = flags.models / "quick" if flags.quick else flags.models
    known = list(classical(session))
    photos = photographs(count)
    sets = ((f"kodak 17 to {16 + len(photos)}", photos, False), ("cifar-10 sheets", sheets(min(count, 4)), True))
    for data, pictures, cifar in sets:
        codecs = [*known, *trained(folder, session, steps, cifar)]
        rows = []
        for codec in codecs:
            rows.append(measured(codec, data, pictures))
            session.say(f"{data}, {codec.family}, {codec.setting}: {rows[-1]['bpp']:.3f} bpp, {rows[-1]['psnr']:.2f} dB")
        compare(rows)
        session.rows += rows
        session.notes.append(f"Smallest rates on {data} in bits a pixel: {floors(rows)}.")
        session.claims += claims(rows, data)
        if session.folder is not None:
            draw(rows, data, session.folder)
            if not cifar:
                side_by_side(codecs, pictures[0], 0.1, session.folder / "image_codecs-side-by-side.jpg")
    session.notes += [
        "Trained here for minutes by squared error on the first 16 photographs of Kodak and two of scikit-learn, CIFAR's on its training "
        "part; model_bytes, which the decoder needs besides, are not part of the rates.",
        "Columns such as JPEG psnr are what that codec gives at the bytes of the row, between its two nearest settings; empty where it "
        "does not reach the rate.",
    ]
    session.data += [f"images/kodak, 17 to {16 + len(photos)}", "images/cifar10_lossless_part.npz, test"]
    return session.finish()


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
