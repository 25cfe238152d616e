"""Text by a language model: the encoder runs the decoder's own program, so that both see the same rounding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tersor.coding.entropy.container import read_varint, write_varint
from tersor.coding.entropy.fingerprints import check_model, check_numerics, fingerprint, numerics_profile
from tersor.coding.entropy.reference import RangeDecoder, RangeEncoder
from tersor.coding.entropy.tables import quantise_pmf
from tersor.coding.errors import CorruptStream
from tersor.coding.text.byte_model import compress_bytes, decompress_bytes
from tersor.coding.text.chunks import Chunk, cut, decode_tokens
from tersor.errors import InvalidArgument

if TYPE_CHECKING:
    from tersor.models import Model

# At 24 bits a vocabulary of fifty thousand loses 0.004 bits a token to the floor of one; at 17 it would lose 0.7.
_BITS = 24
_TOKENS, _BYTES = 0, 1
_USUAL_LANES, MOST_LANES = 8, 64

# (lane, weights of every token) -> the token that comes next: known when coding, read when decoding.
_Choose = Callable[[int, NDArray[np.int64]], int]


class LanguageModelCoder:
    """Codes text with the predictions of a causal language model, several chunks in lock step.

    Prefill and step-by-step decoding round differently, and no rounding of logits hides it; so encoding steps through the same cache in the
    same batches as decoding, and is as slow. For a model that is exact on every machine use :func:`compress_bytes`.

    Args:
        model: A decoder with a tokenizer, compressed or not. It is not part of the file.
        lanes: Chunks in lock step, at most 64; as many as there are, up to 8, without it. Part of the arithmetic, so stored in the file.
        context: Tokens of a chunk; 1024 or what the model takes. Longer is smaller: the first tokens of each chunk are expensive.

    Raises:
        InvalidArgument: If the model has no tokenizer, or a number is out of range.

    Reference:
        Delétang et al.: "Language modeling is compression", 2024.
    """

    def __init__(self, model: Model, lanes: int | None = None, context: int | None = None) -> None:
        if model.tokenizer is None:
            raise InvalidArgument(f"{model.name} has no tokenizer; text is coded with a model that has one")
        longest = model.max_context - 1
        self.context = min(1024, longest) if context is None else context
        self.lanes = _USUAL_LANES if lanes is None else lanes
        self._fixed = lanes is not None
        if not 1 <= self.lanes <= MOST_LANES or not 1 <= self.context <= longest:
            raise InvalidArgument(
                f"lanes must be 1 to {MOST_LANES} and context 1 to {longest} for {model.name}, got {self.lanes} and {self.context}"
            )
        self.model = model
        tokenizer = model.tokenizer
        starts = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
        self._start = next(start for start in starts if start is not None)
        self._special = torch.tensor(sorted(token for token in tokenizer.all_special_ids if token < model.vocabulary), dtype=torch.long)

    def fingerprint(self) -> str:
        """SHA-256 of the weights, the configuration and the tokenizer's vocabulary."""
        settings = {
            key: value for key, value in self.model.config.to_dict().items() if isinstance(value, (int, float, str)) and key[0] != "_"
        }
        settings.pop("transformers_version", None)
        vocabulary = sorted(self.model.tokenizer.get_vocab().items()) if self.model.tokenizer is not None else []
        return fingerprint(self.model.module.state_dict(), {"config": settings, "vocabulary": vocabulary})

    def numerics(self) -> dict[str, Any]:
        """What the rounding of the model depends on here."""
        return {**numerics_profile(lanes=self.lanes, context=self.context), "dtype": str(self.model.module.dtype)}

    def encode(self, data: bytes, verify: bool = True) -> tuple[dict[str, Any], list[bytes]]:
        """Header and streams, one a chunk, for ``data``.

        Args:
            data: Any bytes; what is not text costs what the byte model needs for it.
            verify: Decode everything again, and store chunks that come out wrong by the byte model. Doubles the time.
        """
        chunks = cut(data, self.model.tokenizer, self.context)
        coded = [chunk for chunk in chunks if chunk.tokens]
        if not self._fixed:
            # Lanes that nothing uses would cost as much as others.
            fitting = min(_USUAL_LANES, max(len(coded), 1))
            return LanguageModelCoder(self.model, fitting, self.context).encode(data, verify)
        payloads = dict(zip(map(id, coded), self._encode_tokens(coded), strict=True))
        if verify and coded:
            counts = [len(chunk.tokens) for chunk in coded]
            for chunk, tokens in zip(
                coded, self._decode_tokens([payloads[id(chunk)] for chunk in coded], counts, strict=False), strict=True
            ):
                if tokens is None or decode_tokens(self.model.tokenizer, tokens).encode() != chunk.content:
                    del payloads[id(chunk)]
        header = {"model": self.fingerprint(), "name": self.model.name, "numerics": self.numerics()}
        return header, [self._stream(chunk, payloads.get(id(chunk))) for chunk in chunks]

    def decode(self, header: dict[str, Any], streams: Sequence[bytes], force: bool = False) -> bytes:
        """What :meth:`encode` was given.

        Args:
            header: Its header, which says in how many lanes and chunks of what length.
            streams: Its streams.
            force: Try although the arithmetic may differ; the caller's checksum tells whether it worked.

        Raises:
            ModelMismatch: If another model wrote them.
            NumericsMismatch: If floats may round differently here, and not ``force``.
            CorruptStream: If they are damaged in a way that shows.
        """
        numerics = header.get("numerics")
        lanes, context = (numerics.get(key) if isinstance(numerics, dict) else None for key in ("lanes", "context"))
        if type(lanes) is not int or type(context) is not int or not (1 <= lanes <= MOST_LANES and 1 <= context < self.model.max_context):
            raise CorruptStream("the header of the compressed file names no lanes and context that its model has")
        if (lanes, context) != (self.lanes, self.context):
            return LanguageModelCoder(self.model, lanes, context).decode(header, streams, force)
        check_model(header.get("model"), self.fingerprint())
        check_numerics(header.get("numerics"), self.numerics(), force)
        parts: list[bytes | int] = []
        payloads: list[bytes] = []
        counts: list[int] = []
        for stream in streams:
            number, begin = read_varint(stream, 0)
            kind, count = number & 1, number >> 1
            if kind == _BYTES:
                parts.append(decompress_bytes(stream[begin:], count))
                continue
            if not 1 <= count <= self.context:
                raise CorruptStream(f"a chunk of {count} tokens in a file whose chunks have at most {self.context}")
            parts.append(len(counts))
            counts.append(count)
            payloads.append(stream[begin:])
        decoded = list(self._decode_tokens(payloads, counts, strict=True))
        texts = [decode_tokens(self.model.tokenizer, tokens or []).encode() for tokens in decoded]
        return b"".join(texts[part] if isinstance(part, int) else part for part in parts)

    def cross_entropy_bits(self, data: bytes) -> float:
        """Bits that the model's own probabilities give to ``data``, from one pass over each chunk: what :meth:`encode` should come to."""
        total = 0.0
        for chunk in cut(data, self.model.tokenizer, self.context):
            ids = torch.tensor([[self._start, *chunk.tokens]])
            with torch.no_grad():
                logits = self._masked(self.model.module(ids[:, :-1]).logits[0]) if chunk.tokens else torch.zeros(0, 1)
            chosen = torch.log_softmax(logits.double(), -1).gather(1, ids[0, 1:, None]) if chunk.tokens else logits
            total -= float(chosen.sum()) / float(np.log(2))
        return total

    def _stream(self, chunk: Chunk, payload: bytes | None) -> bytes:
        if payload is None:
            return write_varint(len(chunk.content) << 1 | _BYTES) + compress_bytes(chunk.content)
        return write_varint(len(chunk.tokens) << 1 | _TOKENS) + payload

    def _encode_tokens(self, chunks: Sequence[Chunk]) -> Iterator[bytes]:
        for begin in range(0, len(chunks), self.lanes):
            group = chunks[begin : begin + self.lanes]
            encoders = [RangeEncoder() for _ in group]
            positions = [0] * len(group)

            def choose(
                lane: int, weights: NDArray[np.int64], group: Sequence[Chunk] = group, encoders: list[RangeEncoder] = encoders,
                positions: list[int] = positions,
            ) -> int:  # fmt: skip
                token = group[lane].tokens[positions[lane]]
                positions[lane] += 1
                encoders[lane].encode(int(weights[:token].sum()), int(weights[token]), 1 << _BITS)
                return token

            self._lock_step([len(chunk.tokens) for chunk in group], choose)
            yield from (encoder.finish() for encoder in encoders)

    def _decode_tokens(self, payloads: Sequence[bytes], counts: Sequence[int], strict: bool) -> Iterator[list[int] | None]:
        for begin in range(0, len(payloads), self.lanes):
            decoders = [RangeDecoder(payload) for payload in payloads[begin : begin + self.lanes]]
            decoded: list[list[int]] = [[] for _ in decoders]
            failed: set[int] = set()

            def choose(
                lane: int, weights: NDArray[np.int64], decoders: list[RangeDecoder] = decoders, decoded: list[list[int]] = decoded,
                failed: set[int] = failed,
            ) -> int:  # fmt: skip
                decoder, bounds = decoders[lane], np.cumsum(weights)
                try:
                    token = int(np.searchsorted(bounds, decoder.peek(1 << _BITS), side="right"))
                    decoder.advance(int(bounds[token] - weights[token]), int(weights[token]), 1 << _BITS)
                except CorruptStream:
                    if strict:
                        raise
                    failed.add(lane)
                    token = self._start
                decoded[lane].append(token)
                return token

            self._lock_step(counts[begin : begin + self.lanes], choose)
            yield from (None if lane in failed else tokens for lane, tokens in enumerate(decoded))

    def _lock_step(self, counts: Sequence[int], choose: _Choose) -> None:
        """Run one group of chunks: always the same batch, lanes that are done or were never used fed with the first token."""
        from transformers import DynamicCache

        cache = DynamicCache()
        # The argument's name differs between releases of transformers.
        name = "cache" if "cache" in inspect.signature(self.model.module.forward).parameters else "past_key_values"
        tokens = torch.full((self.lanes, 1), self._start, dtype=torch.long)
        for step in range(max(counts)):
            with torch.no_grad():
                output = self.model.module(tokens, use_cache=True, **{name: cache})
            probabilities = torch.softmax(self._masked(output.logits[:, -1]).double(), -1).numpy()
            tokens = torch.full((self.lanes, 1), self._start, dtype=torch.long)
            for lane, count in enumerate(counts):
                if step < count:
                    tokens[lane, 0] = choose(lane, quantise_pmf(probabilities[lane], _BITS))

    def _masked(self, logits: torch.Tensor) -> torch.Tensor:
        """Special tokens never occur in text: they keep the weight of one that everything has."""
        masked = logits.clone()
        masked[:, self._special] = -torch.inf
        return masked
