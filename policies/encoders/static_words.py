"""Texts to vectors without a network: the mean of trained embeddings of their tokens (WordLlama), or hashed words.

WordLlama's 32,000 embeddings of 256 values were distilled from the token embeddings of large language models and pooled for
similarity of sentences. They come from its wheel: fetched once by pip, pinned by SHA-256, read as a zip file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kineflow.contracts import KineflowError
from kineflow.pinned_wheel import PinnedWheel, wheel_member
from kineflow.policies.encoders.frame_encoder import TextEncoder

WHEEL = PinnedWheel(
    "wordllama==0.4.0.post1",
    "wordllama-0.4.0.post1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
    "MIT (code and wheel); the embeddings are derived from those of Llama 2 70B, whose community licence may apply to them",
    # This one on every machine: only data are read from it.
    ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--platform", "manylinux2014_x86_64"),
)
_TOKENIZER = "wordllama/tokenizers/l2_supercat_tokenizer_config.json"
_WEIGHTS = "wordllama/weights/l2_supercat_256.safetensors"


@dataclass(frozen=True)
class StaticWords:
    """Configuration of the offline text encoder: 256 values of unit length for each text."""

    def build(self) -> StaticWordsEncoder:
        """Raises KineflowError when the wheel is not to be had; names the command that gets it."""
        from safetensors.torch import load

        table = next(iter(load(wheel_member(WHEEL, _WEIGHTS)).values()))
        encoder = StaticWordsEncoder(table, BytePairs(wheel_member(WHEEL, _TOKENIZER)))
        encoder.kept_elsewhere = True
        return encoder


class StaticWordsEncoder(TextEncoder):
    """Texts to `[N, 256]`; a text without tokens is all zeros."""

    table: Tensor

    def __init__(self, table: Float[Tensor, "V D"], tokenizer: BytePairs) -> None:
        super().__init__(table.shape[1], True, {"wheel": WHEEL.sha256})
        self.register_buffer("table", table)
        self._tokenizer = tokenizer
        self._finish()

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        means = [self._mean(text) for text in texts]
        return F.normalize(torch.stack(means), dim=1) if means else torch.zeros(0, self.dim, device=self.table.device)

    def _mean(self, text: str) -> Float[Tensor, "D"]:
        tokens = torch.tensor(self._tokenizer(text), dtype=torch.long, device=self.table.device)
        return self.table[tokens].float().sum(0) / max(len(tokens), 1)


class BytePairs:
    """Llama's tokenizer, from the JSON file of the `tokenizers` library, without that library and without special tokens."""

    def __init__(self, config: bytes) -> None:
        model = json.loads(config)["model"]
        self._number: dict[str, int] = model["vocab"]
        pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        self._rank = {pair: rank for rank, pair in enumerate(pairs)}

    def __call__(self, text: str) -> list[int]:
        """Token numbers. Neighbours are joined in the order of the merges, the leftmost of equals first."""
        parts = list("▁" + text.replace(" ", "▁")) if text else []
        while len(parts) > 1:
            ranks = [self._rank.get(pair, len(self._rank)) for pair in pairwise(parts)]
            best = min(ranks)
            if best == len(self._rank):
                break
            place = ranks.index(best)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return [number for part in parts for number in self._numbers(part)]

    def _numbers(self, part: str) -> list[int]:
        if part in self._number:
            return [self._number[part]]
        return [self._number[f"<0x{byte:02X}>"] for byte in part.encode()]


@dataclass(frozen=True)
class HashedWords:
    """Configuration of the encoder that needs nothing at all and KNOWS NO MEANING: "sofa" is as far from "couch" as from "tree".

    It tells a fixed set of instructions apart; use it for tests and where each instruction is in the training data.
    """

    dim: int = 128

    def build(self) -> HashedWordsEncoder:
        """Raises KineflowError for fewer than 8 dimensions."""
        if self.dim < 8:
            raise KineflowError(f"HashedWords: dim {self.dim} is too small to tell words apart; take at least 8")
        return HashedWordsEncoder(self)


class HashedWordsEncoder(TextEncoder):
    """Texts to `[N, dim]` of unit length: the sum of a random vector for each word and each pair of neighbours."""

    anchor: Tensor

    def __init__(self, config: HashedWords) -> None:
        super().__init__(config.dim, True, {"dim": config.dim})
        self.register_buffer("anchor", torch.zeros(0), persistent=False)  # where the vectors are to be
        self._finish()

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        rows = [self._row(text) for text in texts]
        return F.normalize(torch.stack(rows), dim=1) if rows else torch.zeros(0, self.dim, device=self.anchor.device)

    def _row(self, text: str) -> Float[Tensor, "D"]:
        words = re.findall(r"\w+", text.lower())
        total = torch.zeros(self.dim)
        for gram in [*words, *(" ".join(pair) for pair in pairwise(words))]:
            total += self._signs(gram)
        return total.to(self.anchor.device)

    def _signs(self, gram: str) -> Float[Tensor, "D"]:
        bits = hashlib.shake_256(gram.encode()).digest(self.dim)
        return torch.frombuffer(bytearray(bits), dtype=torch.uint8).bitwise_and(1).float() * 2 - 1
