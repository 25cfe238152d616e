"""Lossy sounds: rate and distortion of WaLLoC trained here beside Opus, Vorbis and MP3 on a speaker whom no training heard.

Rates are those of whole files, headers included; every sound is decoded from its bytes alone. The spoken digits of one speaker are joined
into one recording, as each is smaller than the headers of most formats.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
from image_codecs import at_rate

ARCHIVE, HELD_OUT = "audio/fsdd_600.zip", "theo"
# What is trained if it is not there yet: folder and settings; the reduction is levels of halving over channels of the latent.
MODELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("walloc-sound-8", {"latent": "8", "bits": "5"}),
    ("walloc-sound-16", {"latent": "16", "bits": "6"}),
    ("walloc-sound-32", {"latent": "32", "bits": "6"}),
)
# Container, coding, and levels of compression whose rates lie apart.
FORMATS = {
    "Opus": ("OGG", "OPUS", (0.8, 0.9, 0.95, 0.97, 0.98, 1.0)), "Vorbis": ("OGG", "VORBIS", (0.0, 0.6, 0.9, 1.0)),
    "MP3": ("MP3", "MPEG_LAYER_III", (0.0, 0.3, 0.6, 0.9)),
}  # fmt: skip
_FULL = 32768.0
_WINDOW = 256


@dataclass(frozen=True)
class Codec:
    """A codec at one setting: WAV files to the bytes of another file and back."""

    family: str
    setting: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]
    model_bytes: int = 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = common.parser(__doc__, repeats=1, threads=1)
    flags.add_argument("--recordings", type=int, default=100, help="recordings of the speaker to join")
    flags.add_argument("--models", type=Path, default=common.ROOT / ".codecs", help="folder of trained codecs; those missing are trained")
    flags.add_argument("--steps", type=int, default=600, help="steps of those trainings")
    return flags


def recordings(archive: Path, held_out: bool) -> dict[str, bytes]:
    """WAV files of the held-out speaker, or of all others."""
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if (name.split("_")[1] == HELD_OUT) == held_out)
        return {name: file.read(name) for name in names}


def joined(files: list[bytes]) -> bytes:
    """One WAV of all, at the rate of the first."""
    import torch

    from tersor.coding.pictures import read_sound, write_sound

    sounds = [read_sound(file) for file in files]
    return write_sound(torch.cat([sound for sound, _ in sounds], 1), sounds[0][1])


def classical(session: common.Session) -> Iterator[Codec]:
    """The codecs of libsndfile, by quality."""
    if find_spec("soundfile") is None:
        session.notes.append("Opus, Vorbis and MP3 are left out: pip install soundfile brings them.")
        return
    import soundfile

    session.versions |= {"soundfile": version("soundfile"), "libsndfile": soundfile.__libsndfile_version__}
    for family, (container, coding, levels) in FORMATS.items():
        if coding not in soundfile.available_subtypes(container):
            session.notes.append(f"{family} is left out: this libsndfile was built without it.")
            continue
        for level in levels:
            yield by_soundfile(family, container, coding, level)


def by_soundfile(family: str, container: str, coding: str, level: float) -> Codec:
    """A codec of libsndfile at a level of compression from 0 to 1."""
    import soundfile

    def encode(data: bytes) -> bytes:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        out = io.BytesIO()
        soundfile.write(out, samples, rate, format=container, subtype=coding, compression_level=level)
        return out.getvalue()

    def decode(data: bytes) -> bytes:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        out = io.BytesIO()
        soundfile.write(out, samples, rate, format="WAV", subtype="PCM_16")
        return out.getvalue()

    return Codec(family, f"level {level:g}", encode, decode)


def trained(folder: Path, session: common.Session, steps: int, archive: Path) -> Iterator[Codec]:
    """Tersor's codecs, trained first where they are missing."""
    from tersor import coding
    from tersor.coding.training import is_codec, load_codec, train_codec

    for name, options in MODELS:
        place = folder / name
        if not is_codec(place):
            session.say(f"training {name}")
            sources = folder / "spoken-digits"
            sources.mkdir(parents=True, exist_ok=True)
            for file, content in recordings(archive, held_out=False).items():
                (sources / file).write_bytes(content)
            train_codec("walloc", place, data=sources, steps=steps, options=options)
        codec: Any = load_codec(place)
        done = json.loads((place / "codec.json").read_text(encoding="utf-8"))["training"]["steps"]
        session.notes.append(f"{name} was trained for {done:,} steps.")
        yield Codec(
            "tersor walloc", f"{codec.config.latent} channels, {codec.config.bits} bits",
            lambda data, codec=codec: coding.encode(data, model=codec, verify=False),
            lambda data, codec=codec: coding.decode(data, model=codec), (place / "codec.safetensors").stat().st_size,
        )  # fmt: skip


def measured(codec: Codec, data: bytes) -> common.Row:
    """One codec on the recording; processor time, so that a busy machine does not show."""
    from tersor.coding.pictures import read_sound

    began = time.process_time()
    packed = codec.encode(data)
    middle = time.process_time()
    decoded = codec.decode(packed)
    end = time.process_time()
    (sound, rate), (found, _) = read_sound(data), read_sound(decoded)
    count = sound.shape[1]
    seconds = count / rate
    return {
        "codec": codec.family, "setting": codec.setting, "bytes": len(packed), "bits_per_sample": 8 * len(packed) / count,
        "kbit_s": 8 * len(packed) / seconds / 1000, **distances(sound.float() / _FULL, aligned(found.float() / _FULL, count)),
        "encode_x": seconds / max(middle - began, 1e-6), "decode_x": seconds / max(end - middle, 1e-6),
        "model_bytes": codec.model_bytes or None,
    }  # fmt: skip


def aligned(sound: Any, count: int) -> Any:
    """A decoded sound of the length of the original: what a format appends is cut off, what it leaves out is silence."""
    import torch

    return torch.nn.functional.pad(sound[:, :count], (0, max(count - sound.shape[1], 0)))


def distances(sound: Any, other: Any) -> dict[str, float]:
    """Signal to noise in dB, and the distance of logarithmic spectra in dB, which delay and phase do not touch."""
    import torch

    noise = (sound - other).square().sum()
    ratio = 10 * torch.log10(sound.square().sum() / noise.clamp(min=1e-12))
    window = torch.hann_window(_WINDOW)
    spectra = [torch.stft(one[0], _WINDOW, window=window, return_complex=True).abs().square() + 1e-6 for one in (sound, other)]
    apart = 10 * (spectra[0].log10() - spectra[1].log10())
    return {"snr": float(ratio), "log_spectral": float(apart.square().mean(0).sqrt().mean())}


def run(flags: argparse.Namespace) -> int:
    """Every codec on the recording of the speaker whom no training heard."""
    import torch

    from tersor.data import folder
    from tersor.papers.plots import line_chart

    torch.set_num_threads(flags.threads)
    archive = folder("audio") / Path(ARCHIVE).name
    session = common.Session("sound_codecs", flags)
    count, steps, place = (5, 30, flags.models / "quick") if flags.quick else (flags.recordings, flags.steps, flags.models)
    data = joined(list(recordings(archive, held_out=True).values())[:count])
    for codec in (*classical(session), *trained(place, session, steps, archive)):
        session.rows.append(measured(codec, data))
        session.say(" ".join(f"{key} {common.cell(value)}" for key, value in session.rows[-1].items()))
    compare(session.rows)
    if session.folder is not None:
        session.folder.mkdir(parents=True, exist_ok=True)
        named = [{"kbit a second": row["kbit_s"], "SNR, dB": row["snr"], "codec": row["codec"]} for row in session.rows]
        path = session.folder / "sound_codecs-snr.svg"
        line_chart(named, "kbit a second", "SNR, dB", path, color="codec", title="spoken digits", log="x")
    session.notes += [
        f"{count} recordings of the speaker {HELD_OUT} joined; WaLLoC heard the five others, and learned squared error.",
        "encode_x and decode_x are seconds of sound in a second of processor time. log_spectral is a distance: smaller is better.",
        "Columns such as Opus snr are what that codec gives at the rate of the row, between its two nearest settings; empty where it does "
        "not reach the rate. Opus and MP3 shape their noise for the ear and may delay the signal, which their SNR pays for.",
    ]
    session.data.append(f"{ARCHIVE}, speaker {HELD_OUT}")
    return session.finish()


def compare(rows: list[common.Row]) -> None:
    """Add to each of our rows what the classical codecs give at its very rate."""
    for row in rows:
        for family in FORMATS if row["codec"].startswith("tersor") else ():
            theirs = [{"bpp": other["kbit_s"], **other} for other in rows if other["codec"] == family]
            for key in ("snr", "log_spectral"):
                row[f"{family} {key}"] = at_rate(theirs, row["kbit_s"], key)


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
