"""Words of which SceneNet knows what they look like: the colours and kinds of the named things of our worlds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kineflow.envs.navigation.shapes import COLOUR_NAMES, NOUNS
from kineflow.policies.encoders.frame_encoder import TextEncoder

WORDS = (*COLOUR_NAMES, *NOUNS)


@dataclass(frozen=True)
class SceneWords:
    """Configuration of the text encoder that goes with `SceneNet`: it hears 8 colours and 14 nouns and nothing else."""

    def build(self) -> SceneWordsEncoder:
        return SceneWordsEncoder()


class SceneWordsEncoder(TextEncoder):
    """Texts to `[N, 22]`: 1 for each colour and kind that is mentioned, singular or plural, else 0."""

    anchor: Tensor

    def __init__(self) -> None:
        super().__init__(len(WORDS), True, {"words": WORDS})
        self.register_buffer("anchor", torch.zeros(0), persistent=False)  # says where the module is
        self._finish()

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        heard = [[float(bool(re.search(rf"\b{word}(e?s)?\b", text.lower()))) for word in WORDS] for text in texts]
        return torch.tensor(heard, device=self.anchor.device).reshape(len(texts), len(WORDS))
