"""Learned optical flow: a network of 27 thousand parameters for one thread of a processor, trained on the simulator's own flow.

    a frame, 96 x 96 px   --4 x 4 px patches-->   24 x 24 features, and 48 x 48 of one learned grey
                          --2 x 2, then 3 x 3-->  descriptors of 12 x 12 cells
    two frames
      1. match   all cells with all cells: softmax of products and a learned prior of how far things move; the expected motion
                 and its variance; a convolution and the mean over the picture smooth it
      2. align   two Gauss-Newton steps on the greys of each cell's surroundings (Lucas & Kanade 1981)
      3. mend    a convolution corrects what the steps could not: cells without texture, at depth edges, out of view

What a moving camera sees of a room moves smoothly: 12 x 12 vectors, interpolated, are 0.15 px from the flow of all pixels, and
pixels are where the time goes. How the shipped weights were trained, and what they reach: assets/flow_net.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.flow_features import DenseFlow, motion_of_parts
from kineflow.policies.encoders.weights import load_weights, weights_file

SIDE, PATCHES, GREYS, CELLS = 96, 24, 48, 12  # px of a frame, and how many of each there are along a side
SHIPPED = Path(__file__).parents[1] / "assets" / "flow_net.safetensors"
_CELL_PX = SIDE // CELLS
_CELL_GREYS = GREYS // CELLS
_COLOURS = (0.299, 0.587, 0.114)  # what the learned grey begins as
_FAR = 4.0  # grey pixels that one Gauss-Newton step goes at most
_NEAR = 2.0  # cells that things move, by the prior that training begins with


@dataclass(frozen=True)
class FlowNet:
    """Configuration. `weights`: "shipped", "random", or the .safetensors file that `kineflow train-flow` wrote."""

    weights: str = "shipped"

    def build(self, grid: int) -> FlowNetFlow:
        """`grid`: that of the frame encoder. Raises KineflowError for one finer than 12, or weights that are not there."""
        if not 0 <= grid <= CELLS:
            raise KineflowError(
                f"FlowNet sees the motion of {CELLS} x {CELLS} cells; the grid {grid} of the frame encoder is finer"
            )
        return FlowNetFlow(self, grid)


class FlowNetFlow(DenseFlow):
    """The network, frozen, as an encoder of frames of any size; they are resized to 96 px."""

    def __init__(self, config: FlowNet, grid: int) -> None:
        super().__init__(grid)
        self.config, self.network = config, FlowNetwork()
        path = SHIPPED if config.weights == "shipped" else weights_file(config.weights, (), "FlowNet")
        if path is not None:
            load_flow_net(self.network, path)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> FlowNetFlow:
        """Frozen: stays in evaluation mode."""
        super().train(False)
        return self

    def dense(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 2 H W"]:
        height, width = before.shape[1:3]
        flow = upsampled(self._cells(before, after), SIDE)
        if (height, width) == (SIDE, SIDE):
            return flow
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
        return flow * flow.new_tensor([width / SIDE, height / SIDE])[:, None, None]

    def forward(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N P 4"]:
        moved = self._cells(after, before).neg().transpose(1, 2).unflatten(2, (CELLS, CELLS))
        return motion_of_parts(moved * (_CELL_PX / SIDE), self.grid)

    @torch.no_grad()
    def _cells(self, first: UInt8[Tensor, "N H W 3"], second: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 144 2"]:
        count = len(first)
        if count == 0:
            return torch.zeros(0, CELLS * CELLS, 2, device=first.device)
        frames = torch.cat([first, second])
        if frames.shape[1:3] != (SIDE, SIDE):
            fitted = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
            frames = fitted.permute(0, 2, 3, 1)
        grey, cells = self.network.encode(frames.float())
        return self.network.flows(grey[:count], cells[:count], grey[count:], cells[count:])[-1]


def load_flow_net(network: FlowNetwork, path: Path) -> None:
    """Weights from a .safetensors file. Raises KineflowError: it is not there, or of another network."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise KineflowError(
            f"FlowNet: {path} cannot be read ({error}); train one: kineflow train-flow train_flow/navigation"
        ) from None
    load_weights(network, {name: value.float() for name, value in state.items()}, str(path))


class FlowNetwork(nn.Module):
    """Frames to flow in cells of 8 px, right and down, of each of the 12 x 12 cells of the first frame, row by row.

    Tensors are kept as `[N, places, channels]`, which the convolutions here (matrix products of 3 x 3 surroundings) read as
    they are: at this size a call costs as much as its arithmetic.
    """

    def __init__(self, features: int = 20, mixed: int = 24, descriptor: int = 32, seen: int = 16, hidden: int = 28) -> None:
        super().__init__()
        self.features, self.seen, self.steps = features, seen, 2
        self.patch = nn.Linear(48, features + 4)  # 4 x 4 pixels by row, column, colour; the last 4 are 2 x 2 greys
        self.mix = nn.Linear(4 * (features + 4), mixed)
        self.describe = nn.Linear(9 * mixed, descriptor)
        self.prior = nn.Parameter(torch.zeros(2 * CELLS - 1, 2 * CELLS - 1))
        self.smooth = nn.Linear(9 * (4 + seen), hidden)
        self.smooth_all, self.smooth_out = nn.Linear(hidden, hidden), nn.Linear(hidden, 2)
        self.damping = nn.Parameter(torch.tensor(-5.0))
        self.stride = nn.Parameter(torch.full((self.steps,), 0.8))
        self.mend = nn.Linear(9 * (hidden + 10), hidden)
        self.mend_all, self.mend_out = nn.Linear(hidden, hidden), nn.Linear(hidden, 2)
        self._begin()
        self._constants()
        self.register_load_state_dict_post_hook(_refreshed)

    def _begin(self) -> None:
        """A start from which training is short: descriptors that tell apart, a plain grey, corrections of nothing."""
        offset = torch.arange(1 - CELLS, CELLS)
        with torch.no_grad():
            self.prior.copy_(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * _NEAR**2))
            for layer in (self.smooth_out, self.smooth_all, self.mend_out, self.mend_all):
                layer.weight.zero_(), layer.bias.zero_()
            self.describe.weight.mul_(2.0)
            self.patch.weight[: self.features].mul_(2.0)
            self.patch.weight[self.features :].zero_(), self.patch.bias[self.features :].zero_()
            grey = self.patch.weight.view(-1, 4, 4, 3)[self.features :]
            for part in range(4):
                row, column = part // 2 * 2, part % 2 * 2
                grey[part, row : row + 2, column : column + 2] = torch.tensor(_COLOURS) / 4

    def _constants(self) -> None:
        def keep(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        y, x = (axis.reshape(-1) for axis in torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij"))
        keep("prior_at", ((y[None] - y[:, None] + CELLS - 1) * (2 * CELLS - 1) + x[None] - x[:, None] + CELLS - 1).flatten())
        place = torch.stack([x, y], dim=-1).float() - (CELLS - 1) / 2
        keep("place", place[None])
        keep("moments", torch.cat([place, place.square()], dim=-1)[None])
        axis = (torch.arange(GREYS) + 0.5) * 2 / GREYS - 1
        keep("grey_at", torch.stack(torch.meshgrid(axis, axis, indexing="xy")))  # as grid_sample counts: x, y in [-1, 1]
        share = math.sqrt(2 / CELLS)  # of each of the two passes: a cell is 2 / 12 of what grid_sample calls a picture
        keep("to_greys", share * _interpolation(CELLS, GREYS)[None])
        keep("to_greys_t", share * _interpolation(CELLS, GREYS).T.contiguous())
        keep("average", torch.full((1, 1, CELLS * CELLS), 1 / CELLS**2))
        keep("prior_map", torch.zeros(1, CELLS * CELLS, CELLS * CELLS))

    def train(self, mode: bool = True) -> FlowNetwork:
        super().train(mode)
        self.prior_map = self._prior().detach()
        return self

    def _prior(self) -> Float[Tensor, "1 144 144"]:
        return self.prior.flatten()[self.prior_at].view(1, CELLS * CELLS, CELLS * CELLS)  # type: ignore[no-any-return]

    def encode(self, frames: Float[Tensor, "N 96 96 3"]) -> tuple[Float[Tensor, "N 1 48 48"], Float[Tensor, "N 144 D"]]:
        """The grey and the descriptors of frames in grey levels 0 .. 255."""
        count, half = len(frames), PATCHES // 2
        pixels = frames.view(count, PATCHES, 4, PATCHES, 12).transpose(2, 3).reshape(-1, 48)
        patches = torch.addmm(self.patch.bias, pixels, self.patch.weight.T, alpha=1 / 64)
        grey = patches.view(count, PATCHES, PATCHES, -1)[..., self.features :].reshape(count, PATCHES, PATCHES, 2, 2)
        wide = torch.relu(patches).view(count, half, 2, half, -1).transpose(2, 3).reshape(count, half * half, -1)
        mixed = torch.relu_(F.linear(wide, self.mix.weight, self.mix.bias))
        return grey.transpose(2, 3).reshape(count, 1, GREYS, GREYS), self._conv(self.describe, mixed)

    def flows(
        self,
        grey: Float[Tensor, "N 1 48 48"],
        cells: Float[Tensor, "N 144 D"],
        grey_2: Float[Tensor, "N 1 48 48"],
        cells_2: Float[Tensor, "N 144 D"],
    ) -> list[Float[Tensor, "N 144 2"]]:
        """Of the frame with `grey` and `cells` to the other one: first guess, after each step but the last, and the flow."""
        hidden, flow = self._match(self.logits(cells, cells_2), cells)
        flows = [flow]
        align = _Alignment(grey, grey_2, self.damping.exp())
        for step in range(self.steps):
            delta, rest = align.step(self._greys_at(flow.detach()), measure=step == self.steps - 1)
            if step < self.steps - 1:
                flow = flow - self.stride[step] * delta
                flows.append(flow)
        place = self.place.expand(len(cells), -1, -1) * 0.2
        known = [hidden, delta * _CELL_GREYS, align.texture, flow.detach() * 0.25, rest, place]
        hidden = self._everywhere(self.mend_all, torch.relu_(self._conv(self.mend, torch.cat(known, dim=-1))))
        flow = flow - self.stride[-1] * delta + F.linear(hidden, self.mend_out.weight, self.mend_out.bias)
        return [*flows, flow]

    def logits(self, cells: Float[Tensor, "N 144 D"], cells_2: Float[Tensor, "N 144 D"]) -> Float[Tensor, "N 144 144"]:
        """How much a cell of the first frame looks like each one of the second; the softmax over the last axis is the match."""
        prior = self._prior() if self.training else self.prior_map
        return torch.baddbmm(prior.expand(len(cells), -1, -1), cells, cells_2.transpose(1, 2))

    def _match(
        self, logits: Float[Tensor, "N 144 144"], cells: Float[Tensor, "N 144 D"]
    ) -> tuple[Float[Tensor, "N 144 C"], Float[Tensor, "N 144 2"]]:
        expected = torch.bmm(logits.softmax(dim=-1), self.moments.expand(len(cells), -1, -1))
        mean = expected[..., :2]
        moved, variance = mean - self.place, torch.addcmul(expected[..., 2:], mean, mean, value=-1)
        around = torch.cat([moved, variance, torch.relu(cells[..., : self.seen])], dim=-1)
        hidden = self._everywhere(self.smooth_all, torch.relu_(self._conv(self.smooth, around)))
        return hidden, moved + F.linear(hidden, self.smooth_out.weight, self.smooth_out.bias)

    def _greys_at(self, flow: Float[Tensor, "N 144 2"]) -> Float[Tensor, "N 48 48 2"]:
        """Where the pixels of the first grey are in the second, as grid_sample counts."""
        count = len(flow)
        wide = (flow.transpose(1, 2).reshape(-1, CELLS) @ self.to_greys_t).view(2 * count, CELLS, GREYS)
        start = self.grey_at if count == 1 else self.grey_at.repeat(count, 1, 1)
        places = torch.baddbmm(start, self.to_greys.expand(2 * count, -1, -1), wide)
        return places.view(count, 2, GREYS, GREYS).permute(0, 2, 3, 1)

    def _everywhere(self, layer: nn.Linear, hidden: Float[Tensor, "N 144 C"]) -> Float[Tensor, "N 144 C"]:
        """What all cells have in common, told to each."""
        mean = torch.matmul(self.average.expand(len(hidden), -1, -1), hidden)
        return hidden + F.linear(mean, layer.weight, layer.bias)

    def _conv(self, layer: nn.Linear, cells: Float[Tensor, "N 144 C"]) -> Float[Tensor, "N 144 C2"]:
        """3 x 3, zeros around."""
        count, _, channels = cells.shape
        if torch.is_grad_enabled():  # the same sums; the view below has a slow gradient
            weight = layer.weight.view(-1, 3, 3, channels).permute(0, 3, 1, 2)
            maps = F.conv2d(cells.view(count, CELLS, CELLS, channels).permute(0, 3, 1, 2), weight, layer.bias, padding=1)
            return maps.permute(0, 2, 3, 1).reshape(count, CELLS * CELLS, -1)
        padded, row = F.pad(cells.view(count, CELLS, CELLS, channels), (0, 0, 1, 1, 1, 1)), (CELLS + 2) * channels
        strides = ((CELLS + 2) * row, row, channels, row, 1)
        around = padded.as_strided((count, CELLS, CELLS, 3, 3 * channels), strides)
        return F.linear(around.reshape(count, CELLS * CELLS, 9 * channels), layer.weight, layer.bias)


def _refreshed(network: FlowNetwork, _: Any) -> None:
    network.train(network.training)  # what is computed from weights that were just loaded


class _Alignment:
    """Gauss-Newton steps on brightness constancy: least squares over the 4 x 4 greys of each cell.

    `texture` [N, 144, 3]: the sums of gx gx, gy gy and gx gy, which say what can be seen of a motion, bounded.
    """

    def __init__(self, grey: Float[Tensor, "N 1 48 48"], grey_2: Float[Tensor, "N 1 48 48"], damping: Tensor) -> None:
        self._grey, self._grey_2 = grey, grey_2
        wide = F.pad(grey, (1, 1, 1, 1), mode="replicate")
        # Twice the gradient.
        self._gx, self._gy = wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2], wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]
        sums = _of_cells(self._gx * self._gx, self._gy * self._gy, self._gx * self._gy)
        xx, yy, xy = sums[:, 0] + damping, sums[:, 1] + damping, sums[:, 2]
        share = (2 / _CELL_GREYS) / (xx * yy - xy * xy)
        self._xx, self._yy, self._xy = yy * share, xx * share, xy * share
        self.texture = (sums * 5).clamp(max=3).transpose(1, 2)

    def step(
        self, places: Float[Tensor, "N 48 48 2"], measure: bool
    ) -> tuple[Float[Tensor, "N 144 2"], Float[Tensor, "N 144 M"]]:
        """What is too much in a flow that puts the greys at `places`, in cells; and, to `measure`, the mean difference left."""
        there = F.grid_sample(self._grey_2, places, mode="bilinear", padding_mode="border", align_corners=False)
        change = there - self._grey
        products = (self._gx * change, self._gy * change, change.abs()) if measure else (self._gx * change, self._gy * change)
        sums = _of_cells(*products)
        x, y = sums[:, 0], sums[:, 1]
        far = _FAR / _CELL_GREYS
        delta = torch.stack([self._xx * x - self._xy * y, self._yy * y - self._xy * x], dim=-1).clamp(-far, far)
        return delta, sums[:, 2:].transpose(1, 2)


def _of_cells(*greys: Float[Tensor, "N 1 48 48"]) -> Float[Tensor, "N C 144"]:
    """Means over the greys of each cell."""
    maps, size = torch.cat(greys, dim=1), GREYS // CELLS
    rows = maps.view(len(maps), -1, CELLS, size, GREYS).sum(dim=3)
    return rows.view(len(maps), -1, CELLS, CELLS, size).sum(dim=4).flatten(2) * (1 / size**2)


def upsampled(flow: Float[Tensor, "N 144 2"], side: int, every: int = 1) -> Float[Tensor, "N 2 S S"]:
    """Bilinear to `side` x `side` px of a frame that is `SIDE` px in all, in its px; only `every` so manieth row and column."""
    up = _interpolation(CELLS, side).to(flow)[::every]
    maps = (flow.transpose(1, 2).reshape(-1, CELLS) @ up.T).view(2 * len(flow), CELLS, -1)
    return torch.bmm((up * _CELL_PX).expand(2 * len(flow), -1, -1), maps).view(len(flow), 2, len(up), len(up))


_known: dict[tuple[int, int], Tensor] = {}


def _interpolation(few: int, many: int) -> Float[Tensor, "many few"]:
    """The matrix of bilinear interpolation between centres, constant beyond the outer ones."""
    if (few, many) not in _known:
        lines: Any = F.interpolate(torch.eye(few)[None], size=many, mode="linear", align_corners=False)
        _known[few, many] = lines[0].T.contiguous()
    return _known[few, many]
