"""Which codec a number in a file means, and the choice among them for given bytes."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, get_args

from tersor.coding import classical
from tersor.coding.entropy.container import Container
from tersor.coding.errors import CorruptStream
from tersor.errors import InvalidArgument

if TYPE_CHECKING:
    from tersor.models import Model

AUTO, BYTES, TEXT, PROGRAMS = "auto", "bytes", "text", "programs"
# The numbers are the file format: never change one, never give one again.
_NUMBERS: dict[str, int] = {"raw": 0, "deflate": 1, "bz2": 2, "xz": 3, BYTES: 4, TEXT: 5, PROGRAMS: 6}
_NAMES = {number: name for name, number in _NUMBERS.items()}
CODECS = tuple(_NUMBERS)


def encode(data: bytes, *, codec: str = AUTO, model: Model | None = None, verify: bool = True) -> bytes:
    """Compress ``data`` losslessly into one container.

    Args:
        data: Any bytes.
        codec: ``"auto"`` tries the byte model, the methods of the standard library, and the language model if one is given, and keeps
            the smallest; or one of :data:`CODECS`.
        model: A language model for ``"text"``; whoever decodes needs it too.
        verify: Decode the result and compare before it is returned; what fails is stored by another codec.

    Returns:
        At most 64 bytes more than ``data``.

    Raises:
        InvalidArgument: If there is no such codec, ``"text"`` has no model, or the named codec does not give ``data`` back.
    """
    if codec != AUTO and codec not in _NUMBERS:
        raise InvalidArgument(f"unknown codec {codec!r}; there are {', '.join((AUTO, *CODECS))}")
    if codec == TEXT and model is None:
        raise InvalidArgument("the codec 'text' needs a language model; pass model= (--model), or use 'bytes', which needs none")
    if codec == AUTO and model is not None:
        candidates = [TEXT, BYTES, *classical.METHODS]
    else:
        candidates = [BYTES, *classical.METHODS] if codec == AUTO else [codec]
    results = sorted((_encode_with(name, data, model, verify) for name in candidates), key=len)
    for result in results:
        if not verify or _gives_back(result, data, model):
            return result
    raise InvalidArgument(f"the codec {codec!r} did not give the data back on this machine; use 'auto'")


def decode(data: bytes, *, model: Model | None = None, force: bool = False) -> bytes:
    """What :func:`encode` was given, checked against the checksum of the original.

    Args:
        data: One container.
        model: The language model, if one wrote it.
        force: Decode even where floats may round differently; a wrong result is still refused.

    Raises:
        CorruptStream: If the data is damaged or not ours.
        ModelMismatch: If another model wrote it.
        NumericsMismatch: If floats may round differently here.
        InvalidArgument: If a language model wrote it and none is given.
    """
    return decode_container(Container.from_bytes(data), model=model, force=force)


def decode_container(container: Container, *, model: Model | None = None, force: bool = False) -> bytes:
    """As :func:`decode`, for a container that was read already."""
    name, header = _NAMES.get(container.codec), container.header
    size, checksum = header.get("size"), header.get("crc32")
    if name is None:
        raise CorruptStream(f"the file names codec {container.codec}, which this tersor does not have; update tersor")
    if type(size) is not int or type(checksum) is not int or size < 0:
        raise CorruptStream("the header of the compressed file lacks the size or the checksum of the original")
    result = _decode_with(name, container, size, model, force)
    if len(result) != size or zlib.crc32(result) != checksum:
        raise CorruptStream(
            "the decoded data does not match the checksum of the original: the file is damaged, or floats rounded differently"
        )
    return result


def _encode_with(name: str, data: bytes, model: Model | None, verify: bool) -> bytes:
    header: dict[str, Any] = {}
    if name == TEXT:
        from tersor.coding.text.language_model import LanguageModelCoder

        assert model is not None
        header, streams = LanguageModelCoder(model).encode(data, verify)
    elif name == BYTES:
        from tersor.coding.text.byte_model import compress_bytes

        streams = [compress_bytes(data)]
    elif name == PROGRAMS:
        from tersor.coding.programs.codec import encode_blocks

        streams = [encode_blocks(data)]
    else:
        streams = [classical.compress(data, _method(name))]
    header |= {"size": len(data), "crc32": zlib.crc32(data)}
    return Container(_NUMBERS[name], header, tuple(streams)).to_bytes()


def _decode_with(name: str, container: Container, size: int, model: Model | None, force: bool) -> bytes:
    if name == TEXT:
        return _decode_text(container, model, force)
    if len(container.streams) != 1:
        raise CorruptStream(f"a file of the codec {name!r} has one stream, this one has {len(container.streams)}")
    (stream,) = container.streams
    if name == BYTES:
        from tersor.coding.text.byte_model import decompress_bytes

        return decompress_bytes(stream, size)
    if name == PROGRAMS:
        from tersor.coding.programs.codec import decode_blocks

        return decode_blocks(stream, size)
    return classical.decompress(stream, _method(name), size)


def _decode_text(container: Container, model: Model | None, force: bool) -> bytes:
    from tersor.coding.text.language_model import LanguageModelCoder

    if model is None:
        raise InvalidArgument(f"the file was written with the language model {container.header.get('name')!r}; pass it as model= (--model)")
    return LanguageModelCoder(model).decode(container.header, container.streams, force)


def _method(name: str) -> classical.Method:
    return next(method for method in get_args(classical.Method) if method == name)


def _gives_back(result: bytes, data: bytes, model: Model | None) -> bool:
    container = Container.from_bytes(result)
    # The language model has decoded its chunks already, and corrected those that came out wrong.
    return _NAMES[container.codec] in (TEXT, "raw") or decode_container(container, model=model) == data
