"""Features trained in the simulator: which places of two pictures are the same, and what stands there. 0.24 million parameters.

    frame 96 x 96 px   --convolutions, one layer of attention-->   12 x 12 cells
    each cell          match: 32 numbers, alike where two pictures show the same place, whatever the light and the point of view
                       look: 32 numbers that say what is there, how far away
                       names: how probably each colour and each kind of named thing is there (`SceneWords` are such names)
    two frames         softmax of the products of all cells with all cells, and with "nowhere": where each cell went, how surely

A camera that is to get from here to where a goal picture was taken needs just that: how the picture must move. Features of
networks that were trained to name things hold it too, but also so much else that a hundred worlds can be learned by heart. How
the shipped weights were trained, and what they reach: assets/scene_net.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineflow.envs.navigation.shapes import COLOUR_NAMES, NOUNS
from kineflow.policies.encoders.frame_encoder import FrameEncoder
from kineflow.policies.encoders.preprocessing import Preprocessing
from kineflow.policies.encoders.weights import load_weights, weights_file

SIDE, CELLS, GRID = 96, 12, 6  # px of a frame; cells, and parts of 2 x 2 cells each, along a side
LOOK, NAMES, MATCH = 32, len(COLOUR_NAMES) + len(NOUNS), 32
SAYS = LOOK + NAMES  # of a part's features, what does not depend on another picture
SHARPER = 3.0  # than in training: where a place is an expectation says only if the best match outweighs the many others
SHIPPED = Path(__file__).parents[1] / "assets" / "scene_net.safetensors"


@dataclass(frozen=True)
class SceneNet:
    """Configuration. `weights`: "shipped", "random", or the .safetensors file that `kineflow train-scene` wrote."""

    weights: str = "shipped"

    def build(self) -> SceneNetEncoder:
        """Raises KineflowError for weights that are not there, or of another network."""
        encoder = SceneNetEncoder(self)
        path = SHIPPED if self.weights == "shipped" else weights_file(self.weights, (), "SceneNet")
        if path is not None:
            from safetensors.torch import load_file

            load_weights(encoder.network, {name: value.float() for name, value in load_file(path).items()}, str(path))
        return encoder


class SceneNetEncoder(FrameEncoder):
    """Frames to 6 x 6 parts `[N, 36, 182]`: what each looks like (32), is called (22), what its 2 x 2 cells match by (4 x 32).

    Frozen.
    """

    def __init__(self, config: SceneNet) -> None:
        preprocessing = Preprocessing(SIDE, (0.0,) * 3, (1.0,) * 3, "stretch", "bilinear")
        super().__init__(SAYS + 4 * MATCH, GRID, True, preprocessing, {})
        self.look_dim = SAYS
        self.network = SceneNetwork()
        self._finish()

    def features(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N P D"]:
        match, look = self.network(pixels)
        chances = [logits.softmax(dim=-1)[..., 1:] for logits in self.network.named(look)]
        says = torch.cat([look, *chances], dim=-1)
        parts = F.avg_pool2d(says.mT.reshape(len(says), SAYS, CELLS, CELLS), 2).flatten(2).transpose(1, 2)
        return torch.cat([parts, _by_parts(match)], dim=-1)

    def called(self, seen: Float[Tensor, "*B P D"], words: Float[Tensor, "*B N"]) -> Float[Tensor, "*B P 2"]:
        """How probably each part shows what `SceneWords` name: by its colour alone, and by its colour and kind.

        What is not named of both does not matter; without any name nothing is shown.
        """
        known, sizes = seen[..., LOOK:SAYS] * words[..., None, :], [len(COLOUR_NAMES), len(NOUNS)]
        spoken = [part.amax(dim=-1)[..., None] for part in torch.split(words, sizes, dim=-1)]
        colour, noun = (part.amax(dim=-1) + 1 - told for part, told in zip(torch.split(known, sizes, dim=-1), spoken))
        return torch.stack([colour, colour * noun], dim=-1) * torch.maximum(*spoken)[..., None]

    @torch.no_grad()
    def moved(self, before: Float[Tensor, "*B P D"], after: Float[Tensor, "*B P D"]) -> Float[Tensor, "*B P 3"]:
        """Where the parts of one frame are in another: to the right, down (in quarters of a side), and how surely (0 to 1).

        The first two are multiplied by the third: what is nowhere has not moved.
        """
        network, shape = self.network, before.shape[:-2]
        query, key = (features[..., SAYS:].reshape(*shape, CELLS * CELLS, MATCH).float() for features in (before, after))
        # As attention, which never writes the 144 x 145 shares down: "nowhere" is one key more, of value zero; the others' values
        # are their places, and one.
        one, nothing = query.new_ones(*shape, CELLS * CELLS, 1), query.new_zeros(*shape, 1, MATCH)
        nowhere = (SHARPER * network.nowhere).expand(*shape, 1, 1)
        query = torch.cat([query * (SHARPER * network.sharpness.exp()), one], dim=-1)
        key = torch.cat([torch.cat([key, 0 * one], dim=-1), torch.cat([nothing, nowhere], dim=-1)], dim=-2)
        places = _places(query)
        values = F.pad(torch.cat([places, torch.ones_like(places[:, :1])], dim=-1), (0, MATCH - 2, 0, 1))
        found = F.scaled_dot_product_attention(
            query.flatten(0, -3)[:, None],
            key.flatten(0, -3)[:, None],
            values.expand(shape.numel(), 1, *values.shape),
            scale=1.0,
        )[:, 0, :, :3].reshape(*shape, GRID * GRID, 4, 3)
        sure = found[..., 2:]
        return torch.cat([found[..., :2] - sure * places.reshape(GRID * GRID, 4, 2), sure], dim=-1).mean(dim=-2)


class SceneNetwork(nn.Module):
    """Pixels 0 to 1 `[N, 3, 96, 96]` to `match` `[N, 144, 32]`, of length 1, and `look` `[N, 144, 32]`, row by row."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2, bias=False), _norm(16), nn.SiLU(),
            nn.Conv2d(16, 32, 3, 2, 1, bias=False), _norm(32), nn.SiLU(),
            _Residual(32), nn.SiLU(),
            nn.Conv2d(32, width, 3, 2, 1, bias=False), _norm(width), nn.SiLU(),
            _Residual(width), nn.SiLU(), _Residual(width),
        )  # fmt: skip
        self.place = nn.Parameter(0.02 * torch.randn(CELLS * CELLS, width))
        self.attention = _Attention(width)
        self.match, self.look = nn.Linear(width, MATCH), nn.Linear(width, LOOK)
        self.colour, self.noun = nn.Linear(LOOK, 1 + len(COLOUR_NAMES)), nn.Linear(LOOK, 1 + len(NOUNS))
        self.sharpness = nn.Parameter(torch.tensor(2.5))  # its exponential multiplies the cosines
        self.nowhere = nn.Parameter(torch.tensor(0.0))

    def forward(self, pixels: Float[Tensor, "N 3 S S"]) -> tuple[Float[Tensor, "N 144 C"], Float[Tensor, "N 144 D"]]:
        mean, std = pixels.mean((1, 2, 3), keepdim=True), pixels.std((1, 2, 3), keepdim=True)
        x = ((pixels - mean) / (std + 0.05)).contiguous(memory_format=torch.channels_last)
        cells = self.attention(self.stem(x).flatten(2).transpose(1, 2) + self.place)
        return F.normalize(self.match(cells), dim=-1), F.silu(self.look(cells))

    def named(self, look: Float[Tensor, "*B D"]) -> tuple[Float[Tensor, "*B C"], Float[Tensor, "*B N"]]:
        """Logits of no colour of a named thing and each of them; of no kind and each."""
        return self.colour(look), self.noun(look)

    def logits(self, query: Float[Tensor, "*B P C"], key: Float[Tensor, "*B Q C"]) -> Float[Tensor, "*B P Q1"]:
        """Of where each of P cells is among Q, and, last, of being nowhere there."""
        products = (query * self.sharpness.exp()) @ key.transpose(-1, -2)
        return torch.cat([products, self.nowhere.expand(*products.shape[:-1], 1)], dim=-1)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), _norm(width)
        self.second, self.second_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), _norm(width)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        return x + self.second_norm(self.second(F.silu(self.first_norm(self.first(x)))))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x: Float[Tensor, "N L W"]) -> Float[Tensor, "N L W"]:
        query, key, value = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))  # type: ignore[no-any-return]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


def _by_parts(cells: Float[Tensor, "N 144 C"]) -> Float[Tensor, "N 36 C4"]:
    """Cells row by row to parts row by row, the four cells of each behind each other."""
    whole = cells.reshape(len(cells), GRID, 2, GRID, 2, -1).transpose(2, 3)  # [N, 6, 6, 2, 2, C]
    return whole.reshape(len(cells), GRID * GRID, -1)


def _places(like: Tensor) -> Float[Tensor, "144 2"]:
    """Right and down of each cell, part by part, in quarters of a side."""
    along = torch.arange(CELLS, device=like.device, dtype=torch.float32) * (4 / CELLS)
    down, right = torch.meshgrid(along, along, indexing="ij")
    return _by_parts(torch.stack([right, down], dim=-1).flatten(0, 1)[None]).reshape(CELLS * CELLS, 2)
