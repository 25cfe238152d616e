"""Which codec a number in a file means, and the choice among them for given bytes."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, get_args

from tersor.coding import classical
from tersor.coding.entropy.container import Container
from tersor.coding.errors import CorruptStream, ModelMismatch
from tersor.errors import InvalidArgument

if TYPE_CHECKING:
    from tersor.coding.training import TrainedCodec
    from tersor.models import Model

# Longest data that "auto" searches programs for, which takes some milliseconds for every 128 bytes.
_SHORT_ENOUGH = 4096
AUTO, BYTES, TEXT, PROGRAMS = "auto", "bytes", "text", "programs"
# The numbers are the file format: never change one, never give one again.
_NUMBERS: dict[str, int] = {"raw": 0, "deflate": 1, "bz2": 2, "xz": 3, BYTES: 4, TEXT: 5, PROGRAMS: 6}
# Trained codecs of :mod:`tersor.coding.training`; what they lose they lose for good, so no content is given to them unasked.
TRAINED: dict[str, int] = {"image_vq": 7, "walloc": 8, "features": 9, "mesh": 10}
# Digits of a trained codec's fingerprint in its files, which may be smaller than the whole of it.
_SHORT = 16
_NAMES = {number: name for name, number in (_NUMBERS | TRAINED).items()}
CODECS = (*_NUMBERS, *TRAINED)


def encode(data: bytes, *, codec: str = AUTO, model: Model | TrainedCodec | None = None, verify: bool = True) -> bytes:
    """Compress ``data`` into one container, losslessly unless a trained codec is named.

    Args:
        data: Any bytes.
        codec: ``"auto"`` tries the byte model, the methods of the standard library, programs for data of up to 4,096 bytes, and the
            language model if one is given, and keeps the smallest, or takes the trained codec that is given; or one of :data:`CODECS`.
        model: A language model for ``"text"``, or what :func:`tersor.coding.training.load_codec` gives for a trained codec; whoever
            decodes needs it too.
        verify: Decode the result and compare before it is returned; what fails is stored by another codec.

    Returns:
        At most 64 bytes more than ``data``, unless a trained codec is named.

    Raises:
        InvalidArgument: If there is no such codec, the codec has no model or ``data`` is nothing that it understands, or a lossless
            codec does not give ``data`` back.
    """
    if codec != AUTO and codec not in CODECS:
        raise InvalidArgument(f"unknown codec {codec!r}; there are {', '.join((AUTO, *CODECS))}")
    if takes_whole_files(codec, model):
        return _encode_trained(codec, data, model, verify)
    if codec == TEXT and model is None:
        raise InvalidArgument("the codec 'text' needs a language model; pass model= (--model), or use 'bytes', which needs none")
    candidates = [codec]
    if codec == AUTO:
        programs = [PROGRAMS] if len(data) <= _SHORT_ENOUGH else []
        candidates = [*([TEXT] if model is not None else []), BYTES, *classical.METHODS, *programs]
    results = sorted((_encode_with(name, data, model, verify) for name in candidates), key=len)
    for result in results:
        if not verify or _gives_back(result, data, model):
            return result
    raise InvalidArgument(f"the codec {codec!r} did not give the data back on this machine; use 'auto'")


def decode(data: bytes, *, model: Model | TrainedCodec | None = None, force: bool = False) -> bytes:
    """What :func:`encode` was given, checked against the checksum of the original; what a trained codec made of it, in a usual format.

    Args:
        data: One container.
        model: The language model or trained codec, if one wrote it.
        force: Decode even where floats may round differently; a wrong result is still refused.

    Raises:
        CorruptStream: If the data is damaged or not ours.
        ModelMismatch: If another model wrote it.
        NumericsMismatch: If floats may round differently here.
        InvalidArgument: If a model wrote it and none is given.
    """
    return decode_container(Container.from_bytes(data), model=model, force=force)


def decode_container(container: Container, *, model: Model | TrainedCodec | None = None, force: bool = False) -> bytes:
    """As :func:`decode`, for a container that was read already."""
    name, header = codec_name(container.codec), container.header
    if name in TRAINED:
        return _decode_trained(name, container, model)
    size, checksum = header.get("size"), header.get("crc32")
    if type(size) is not int or type(checksum) is not int or size < 0:
        raise CorruptStream("the header of the compressed file lacks the size or the checksum of the original")
    result = _decode_with(name, container, size, model, force)
    if len(result) != size or zlib.crc32(result) != checksum:
        raise CorruptStream(
            "the decoded data does not match the checksum of the original: the file is damaged, or floats rounded differently"
        )
    return result


def codec_name(number: int) -> str:
    """The codec that a number in a file means.

    Raises:
        CorruptStream: If it means none.
    """
    if number not in _NAMES:
        raise CorruptStream(f"the file names codec {number}, which this tersor does not have; update tersor")
    return _NAMES[number]


def takes_whole_files(codec: str, model: object) -> bool:
    """Whether ``codec`` with ``model`` is a trained codec, which understands a file only as a whole."""
    return codec in TRAINED or _is_trained(model)


def _is_trained(model: object) -> bool:
    return getattr(model, "name", None) in TRAINED and hasattr(model, "fingerprint")


def _encode_trained(codec: str, data: bytes, model: Any, verify: bool) -> bytes:
    given = model.name if _is_trained(model) else "none"
    if codec == AUTO:
        codec = given
    if codec != given:
        wanted = codec if codec in TRAINED else given
        raise InvalidArgument(
            f"codec {codec!r} and a trained codec {given!r} do not go together; pass codec={wanted!r} (--codec) and the folder of a "
            f"trained {wanted} as model= (--model): tersor train-codec {wanted} makes one"
        )
    header, streams = model.encode(data)
    container = Container(TRAINED[codec], {**header, "model": model.fingerprint[:_SHORT]}, tuple(streams))
    if verify:
        _decode_trained(codec, container, model)
    return container.to_bytes()


def _decode_trained(name: str, container: Container, model: Any) -> bytes:
    stored = container.header.get("model")
    if model is None:
        raise InvalidArgument(f"the file was written by the trained codec {name} {stored}; pass its folder as model= (--model)")
    if not _is_trained(model) or model.name != name:
        raise ModelMismatch(f"the file was written by the trained codec {name} {stored}, not by {model.name!r}; pass its folder")
    if stored != model.fingerprint[:_SHORT]:
        raise ModelMismatch(f"the file was written by the {name} {stored}, not by {model.fingerprint[:_SHORT]}; pass that one's folder")
    decoded: bytes = model.decode(container.header, container.streams)
    return decoded


def _encode_with(name: str, data: bytes, model: Any, verify: bool) -> bytes:
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


def _decode_with(name: str, container: Container, size: int, model: Any, force: bool) -> bytes:
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


def _decode_text(container: Container, model: Any, force: bool) -> bytes:
    if model is None:
        raise InvalidArgument(f"the file was written with the language model {container.header.get('name')!r}; pass it as model= (--model)")
    if _is_trained(model):
        raise ModelMismatch(f"the file was written with the language model {container.header.get('name')!r}, not by {model.name}")
    # Torch is not imported for a file that cannot be decoded.
    from tersor.coding.text.language_model import LanguageModelCoder

    return LanguageModelCoder(model).decode(container.header, container.streams, force)


def _method(name: str) -> classical.Method:
    return next(method for method in get_args(classical.Method) if method == name)


def _gives_back(result: bytes, data: bytes, model: Any) -> bool:
    container = Container.from_bytes(result)
    # The language model has decoded its chunks already, and corrected those that came out wrong.
    return _NAMES[container.codec] in (TEXT, "raw") or decode_container(container, model=model) == data
