"""Pictures and sounds between files and tensors, and those that codecs are trained on by default."""

from __future__ import annotations

import hashlib
import io
import os
import wave
import zipfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InvalidArgument

# A photograph of 64 million pixels; what is larger is refused before it is decoded.
MOST_PIXELS = 1 << 26
MOST_CHANNELS = 8
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".ppm", ".bmp", ".tif", ".tiff")
# Of the Kodak photographs, those that default trainings see. The others are for reporting.
KODAK_TRAINED = tuple(range(1, 17))
KODAK_HELD_OUT = tuple(range(17, 25))


def read_picture(data: bytes) -> Tensor:
    """uint8 ``[3, height, width]`` of the bytes of a picture file, in RGB, by Pillow (the extra ``tersor[coding]``).

    Raises:
        InvalidArgument: If it is no picture, damaged, empty or of more than 64 million pixels, or Pillow is missing.
    """
    if find_spec("PIL") is None:
        raise InvalidArgument("pictures are read by Pillow, which is missing; pip install 'tersor[coding]'")
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            if not 0 < width * height <= MOST_PIXELS:
                raise InvalidArgument(f"a picture of {width} x {height} pixels; at most {MOST_PIXELS:,} are taken: cut it")
            values = np.array(picture.convert("RGB"))
    except InvalidArgument:
        raise
    # Pillow raises almost anything on damaged files.
    except Exception as error:
        raise InvalidArgument(f"the file is no picture that Pillow can read ({error}); give a PNG, JPEG, WebP or the like") from None
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def write_picture(picture: Tensor) -> bytes:
    """PNG of uint8 ``[3, height, width]``."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(out, "PNG")
    return out.getvalue()


def read_sound(data: bytes) -> tuple[Tensor, int]:
    """int16 ``[channels, samples]`` and the samples a second of a WAV file of 16 bits.

    Raises:
        InvalidArgument: If it is none.
    """
    try:
        with wave.open(io.BytesIO(data)) as sound:
            channels, width, rate = sound.getnchannels(), sound.getsampwidth(), sound.getframerate()
            frames = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"the file is no WAV of 16 bits ({error}); convert it") from None
    if width != 2 or not 1 <= channels <= MOST_CHANNELS or len(frames) < 2 * channels:
        raise InvalidArgument(f"a WAV of {8 * width} bits and {channels} channels; needed are 16 bits, 1 to {MOST_CHANNELS} and a sample")
    values = np.frombuffer(frames[: len(frames) // (2 * channels) * 2 * channels], dtype="<i2").reshape(-1, channels)
    return torch.from_numpy(values.T.copy()), rate


def write_sound(sound: Tensor, rate: int) -> bytes:
    """WAV of int16 ``[channels, samples]``."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(sound.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(sound.T.contiguous().numpy().astype("<i2").tobytes())
    return out.getvalue()


def training_pictures(source: Path | None) -> tuple[list[Tensor], str]:
    """Pictures to train on, and what they are, for the record.

    Args:
        source: A picture, a folder of them, or an ``.npz`` with ``x_train`` (or its only array) uint8 ``[n, 3, height, width]``; without it
            the two photographs of scikit-learn and the first sixteen of ``$TERSOR_DATA/images/kodak``, as far as they are there.

    Raises:
        InvalidArgument: If there is none.
    """
    if source is None:
        pictures, said = _default_pictures()
    elif source.suffix == ".npz":
        pictures, said = _from_arrays(source), str(source)
    else:
        files = [source] if source.is_file() else sorted(_files(source, _PICTURES))
        pictures, said = [read_picture(file.read_bytes()) for file in files], str(source)
    if not pictures:
        raise InvalidArgument(f"nothing to train on: {source or 'the default'} has no pictures; pass data= (--data), a folder of them")
    return pictures, f"{said} {_hash(pictures)}"


def training_sounds(source: Path) -> tuple[list[Tensor], int, str]:
    """Sounds to train on, their samples a second, and what they are.

    Args:
        source: A WAV of 16 bits, a folder of them, or a ``.zip`` that holds some; all of one rate and number of channels.

    Raises:
        InvalidArgument: If there is none, or they differ in rate or channels.
    """
    found = [read_sound(content) for content in _sound_files(source)]
    kinds = {(sound.shape[0], rate) for sound, rate in found}
    if len(kinds) != 1:
        raise InvalidArgument(f"{source} must hold WAV files of one rate and number of channels, found {sorted(kinds) or 'none'}")
    sounds = [sound for sound, _ in found]
    return sounds, found[0][1], f"{source} {_hash(sounds)}"


def holds_sounds(source: Path | None) -> bool:
    """Whether ``source`` is a sound, a folder of sounds or an archive of them, rather than pictures."""
    if source is None:
        return False
    if source.suffix.lower() == ".zip":
        return True
    return source.suffix.lower() == ".wav" or (source.is_dir() and next(_files(source, (".wav",)), None) is not None)


def kodak(numbers: Sequence[int]) -> list[Tensor]:
    """Photographs of the Kodak set by their numbers, from ``$TERSOR_DATA/images/kodak``.

    Raises:
        InvalidArgument: If the folder or one of them is missing.
    """
    from tersor.data import folder

    place = folder("images/kodak")
    missing = [number for number in numbers if not (place / f"{number:02}.png").is_file()]
    if missing:
        raise InvalidArgument(f"{place} lacks the photographs {missing}")
    return [read_picture((place / f"{number:02}.png").read_bytes()) for number in numbers]


def _default_pictures() -> tuple[list[Tensor], str]:
    pictures, parts = [], []
    if find_spec("sklearn") is not None:
        from sklearn.datasets import load_sample_image

        pictures += [torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1) for name in ("china.jpg", "flower.jpg")]
        parts.append("scikit-learn photographs")
    if (Path(os.environ.get("TERSOR_DATA", "")) / "images" / "kodak" / "16.png").is_file():
        pictures += kodak(KODAK_TRAINED)
        parts.append("kodak 1 to 16")
    return pictures, ", ".join(parts)


def _from_arrays(source: Path) -> list[Tensor]:
    try:
        with np.load(source, allow_pickle=False) as file:
            name = "x_train" if "x_train" in file.files else file.files[0]
            values = file[name]
    except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise InvalidArgument(f"{source} cannot be read as arrays ({error})") from None
    if values.ndim != 4 or values.shape[1] != 3 or values.dtype != np.uint8:
        raise InvalidArgument(f"the pictures in {source} must be uint8 [n, 3, height, width], got {values.dtype} {values.shape}")
    return list(torch.from_numpy(values))


def _sound_files(source: Path) -> Iterator[bytes]:
    if source.suffix.lower() != ".zip":
        yield from (file.read_bytes() for file in ([source] if source.is_file() else sorted(_files(source, (".wav",)))))
        return
    try:
        with zipfile.ZipFile(source) as archive:
            for name in sorted(archive.namelist()):
                if name.lower().endswith(".wav"):
                    yield archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise InvalidArgument(f"{source} cannot be read as an archive of sounds ({error})") from None


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    if not folder.is_dir():
        raise InvalidArgument(f"there is no {folder}; name a file or folder to train on")
    return (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def _hash(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
