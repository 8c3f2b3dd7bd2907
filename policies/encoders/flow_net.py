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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.flow_features import DenseFlow, motion_of_parts
from kineflow.policies.encoders.traced import Traced
from kineflow.policies.encoders.weights import load_weights, weights_file

SIDE, PATCHES, GREYS, CELLS = 96, 24, 48, 12  # px of a frame, and how many of each there are along a side
SHIPPED = Path(__file__).parents[1] / "assets" / "flow_net.safetensors"
_CELL_PX = SIDE // CELLS
_CELL_GREYS = GREYS // CELLS
_FEW = 8  # pairs at once: more are no faster, and fall out of the processor's cache
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
        self._traced = Traced()

    def train(self, mode: bool = True) -> FlowNetFlow:
        """Frozen: stays in evaluation mode."""
        super().train(False)
        return self

    def dense(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 2 H W"]:
        height, width = before.shape[1:3]
        flow = self._of_few(self._dense, self._fitted(before), self._fitted(after))
        if (height, width) == (SIDE, SIDE):
            return flow
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
        return flow * flow.new_tensor([width / SIDE, height / SIDE])[:, None, None]

    def forward(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N P 4"]:
        return self._of_few(self._parts, self._fitted(after), self._fitted(before))

    def together(self, before: UInt8[Tensor, "N H W 3"], after: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N P 4"]:
        """As `forward`, all pairs at once and without TorchScript: what is exported."""
        return self._parts(self._fitted(after), self._fitted(before))

    def _fitted(self, frames: UInt8[Tensor, "N H W 3"]) -> Tensor:
        if frames.shape[1:3] == (SIDE, SIDE):
            return frames
        fitted = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
        return fitted.permute(0, 2, 3, 1).contiguous()

    @torch.no_grad()
    def _of_few(self, compute: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
        """In parts that fit the processor's cache; a single pair without Python in between."""
        if first.shape[0] == 1 and first.device.type == "cpu":
            return self._traced(compute, self.network.ready(), first, second)
        if first.shape[0] == 0:
            nothing = first.new_zeros(1, SIDE, SIDE, 3)
            return compute(nothing, nothing)[:0]
        starts = range(0, first.shape[0], _FEW)
        return torch.cat([compute(first[start : start + _FEW], second[start : start + _FEW]) for start in starts])

    def _dense(self, first: Tensor, second: Tensor) -> Float[Tensor, "N 2 96 96"]:
        return upsampled(self._cells(first, second), SIDE)

    def _parts(self, first: Tensor, second: Tensor) -> Float[Tensor, "N P 4"]:
        moved = self._cells(first, second).transpose(1, 2).reshape(-1, 2, CELLS, CELLS)
        return motion_of_parts(moved * (-_CELL_PX / SIDE), self.grid)

    def _cells(self, first: Tensor, second: Tensor) -> Float[Tensor, "N 144 2"]:
        count = first.shape[0]
        grey, cells = self.network.encode(torch.cat([first, second]).float())
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
    they are: at this size a call costs as much as its arithmetic. So do a look into a module, and a factor that could be in a
    matrix: `_Ready` holds what is computed with.
    """

    prior_at: Tensor
    place: Tensor
    moments: Tensor
    scales: Tensor
    grey_at: Tensor
    to_greys: Tensor
    to_greys_t: Tensor

    def __init__(self, features: int = 20, mixed: int = 24, descriptor: int = 32, seen: int = 16, hidden: int = 28) -> None:
        super().__init__()
        self.features, self.seen = features, seen
        self.patch = nn.Linear(48, features + 4)  # 4 x 4 pixels by row, column, colour; the last 4 are 2 x 2 greys
        self.mix = nn.Linear(4 * (features + 4), mixed)
        self.describe = nn.Linear(9 * mixed, descriptor)
        self.prior = nn.Parameter(torch.zeros(2 * CELLS - 1, 2 * CELLS - 1))
        self.smooth = nn.Linear(9 * (4 + seen), hidden)
        self.smooth_all, self.smooth_out = nn.Linear(hidden, hidden), nn.Linear(hidden, 2)
        self.damping = nn.Parameter(torch.tensor(-5.0))
        self.stride = nn.Parameter(torch.full((2,), 0.8))
        self.mend = nn.Linear(9 * (hidden + 10), hidden)
        self.mend_all, self.mend_out = nn.Linear(hidden, hidden), nn.Linear(hidden, 2)
        self._begin()
        self._constants(hidden)
        self._ready: _Ready | None = None
        self.register_load_state_dict_post_hook(_forgotten)  # type: ignore[no-untyped-call]

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

    def _constants(self, hidden: int) -> None:
        def keep(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        y, x = (axis.reshape(-1) for axis in torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij"))
        keep("prior_at", ((y[None] - y[:, None] + CELLS - 1) * (2 * CELLS - 1) + x[None] - x[:, None] + CELLS - 1).flatten())
        place = torch.stack([x, y], dim=-1).float() - (CELLS - 1) / 2
        keep("place", place[None])
        keep("moments", torch.cat([place, place.square()], dim=-1)[None])
        # Of what the last convolution reads: hidden, step, texture, flow, difference left, place. It brings them to about 1.
        keep("scales", torch.tensor([1.0] * hidden + [4.0] * 2 + [5.0] * 3 + [0.25] * 2 + [1 / _CELL_GREYS**2] + [0.2] * 2))
        axis = (torch.arange(GREYS) + 0.5) * 2 / GREYS - 1
        keep("grey_at", torch.stack(torch.meshgrid(axis, axis, indexing="xy")))  # as grid_sample counts: x, y in [-1, 1]
        share = math.sqrt(2 / CELLS)  # of each of the two passes: a cell is 2 / 12 of what grid_sample calls a picture
        keep("to_greys", share * _interpolation(CELLS, GREYS)[None])
        keep("to_greys_t", share * _interpolation(CELLS, GREYS).T.contiguous())

    def train(self, mode: bool = True) -> FlowNetwork:
        self._ready = None
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> FlowNetwork:
        self._ready = None  # it holds tensors of the old device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def ready(self) -> _Ready:
        """The weights as they are computed with; kept until they change, where they are not being trained."""
        if self._ready is not None:
            return self._ready
        made = _Ready(self)
        if not self.training:
            self._ready = made
        return made

    def encode(self, frames: Float[Tensor, "N 96 96 3"]) -> tuple[Float[Tensor, "N 1 48 48"], Float[Tensor, "N 144 D"]]:
        """The grey and the descriptors of frames in grey levels 0 .. 255."""
        ready, count, half, features = self.ready(), frames.shape[0], PATCHES // 2, self.features
        pixels = frames.view(count, PATCHES, 4, PATCHES, 12).transpose(2, 3).reshape(-1, 48)
        patches = torch.addmm(ready.patch_bias, pixels, ready.patch)
        grey = patches.view(count, PATCHES, PATCHES, features + 4)[..., features:].reshape(count, PATCHES, PATCHES, 2, 2)
        wide = torch.relu(patches).view(count, half, 2, half, 2 * features + 8).transpose(2, 3)
        mixed = torch.relu_(F.linear(wide.reshape(count, half * half, 4 * features + 16), *ready.mix))
        return grey.transpose(2, 3).reshape(count, 1, GREYS, GREYS), _conv(mixed, *ready.describe)

    def flows(
        self,
        grey: Float[Tensor, "N 1 48 48"],
        cells: Float[Tensor, "N 144 D"],
        grey_2: Float[Tensor, "N 1 48 48"],
        cells_2: Float[Tensor, "N 144 D"],
    ) -> list[Float[Tensor, "N 144 2"]]:
        """Of the frame with `grey` and `cells` to the other one: first guess, after each step but the last, and the flow."""
        ready, count = self.ready(), cells.shape[0]
        hidden, first = self._match(ready, self.logits(cells, cells_2), cells)
        align = _Alignment(grey, grey_2, ready.damping)
        delta, _ = align.step(ready.greys_at(first.detach()), measure=False)
        second = first - ready.stride[0] * delta
        delta, rest = align.step(ready.greys_at(second.detach()), measure=True)
        known = torch.cat([hidden, delta, align.texture, second.detach(), rest, ready.place.expand(count, -1, -1)], dim=-1)
        hidden = _everywhere(torch.relu_(_conv(known, *ready.mend)), *ready.mend_all)
        return [first, second, second - ready.stride[1] * delta + F.linear(hidden, *ready.mend_out)]

    def logits(self, cells: Float[Tensor, "N 144 D"], cells_2: Float[Tensor, "N 144 D"]) -> Float[Tensor, "N 144 144"]:
        """How much a cell of the first frame looks like each one of the second; the softmax over the last axis is the match."""
        return torch.baddbmm(self.ready().prior.expand(cells.shape[0], -1, -1), cells, cells_2.transpose(1, 2))

    def _match(
        self, ready: _Ready, logits: Float[Tensor, "N 144 144"], cells: Float[Tensor, "N 144 D"]
    ) -> tuple[Float[Tensor, "N 144 C"], Float[Tensor, "N 144 2"]]:
        expected = torch.bmm(logits.softmax(dim=-1), ready.moments.expand(cells.shape[0], -1, -1))
        mean, square = expected[..., :2], expected[..., 2:]
        moved, variance = mean - ready.place, torch.addcmul(square, mean, mean, value=-1)
        around = torch.cat([moved, variance, torch.relu(cells[..., : self.seen])], dim=-1)
        hidden = _everywhere(torch.relu_(_conv(around, *ready.smooth)), *ready.smooth_all)
        return hidden, moved + F.linear(hidden, *ready.smooth_out)


def _forgotten(network: FlowNetwork, _: Any) -> None:
    network._ready = None  # it was computed from weights that other ones have just replaced


_Layer = tuple[Tensor, Tensor]


class _Ready:
    """Weights and constants of a network as they are computed with, factors multiplied into the matrices."""

    def __init__(self, network: FlowNetwork) -> None:
        self.patch, self.patch_bias = network.patch.weight.T / 64, network.patch.bias  # of 256 grey levels
        self.mix: _Layer = (network.mix.weight, network.mix.bias)
        self.describe: _Layer = (network.describe.weight, network.describe.bias)
        side = CELLS * CELLS
        self.prior = network.prior.flatten()[network.prior_at].view(1, side, side)
        self.smooth: _Layer = (network.smooth.weight, network.smooth.bias)
        self.smooth_all: _Layer = (network.smooth_all.weight / side, network.smooth_all.bias)
        self.smooth_out: _Layer = (network.smooth_out.weight, network.smooth_out.bias)
        self.damping = network.damping.exp()
        self.stride = network.stride.unbind()
        scaled = network.mend.weight.view(len(network.mend.bias), 9, -1) * network.scales
        self.mend: _Layer = (scaled.flatten(1), network.mend.bias)
        self.mend_all: _Layer = (network.mend_all.weight / side, network.mend_all.bias)
        self.mend_out: _Layer = (network.mend_out.weight, network.mend_out.bias)
        self.place, self.moments, self._grey_at = network.place, network.moments, network.grey_at
        self._to_greys, self._to_greys_t = network.to_greys, network.to_greys_t

    def greys_at(self, flow: Float[Tensor, "N 144 2"]) -> Float[Tensor, "N 48 48 2"]:
        """Where the pixels of the first grey are in the second, as grid_sample counts."""
        count = flow.shape[0]
        wide = (flow.transpose(1, 2).reshape(-1, CELLS) @ self._to_greys_t).view(2 * count, CELLS, GREYS)
        start = self._grey_at if count == 1 else self._grey_at.repeat(count, 1, 1)
        places = torch.baddbmm(start, self._to_greys.expand(2 * count, -1, -1), wide)
        return places.view(count, 2, GREYS, GREYS).permute(0, 2, 3, 1)


def _everywhere(hidden: Float[Tensor, "N 144 C"], weight: Tensor, bias: Tensor) -> Float[Tensor, "N 144 C"]:
    """What all cells have in common, told to each."""
    return hidden + F.linear(hidden.sum(dim=1, keepdim=True), weight, bias)


def _conv(cells: Float[Tensor, "N 144 C"], weight: Tensor, bias: Tensor) -> Float[Tensor, "N 144 C2"]:
    """3 x 3, zeros around."""
    count, _, channels = cells.shape
    if torch.is_grad_enabled():  # the same sums; the view below has a slow gradient
        kernel = weight.view(-1, 3, 3, channels).permute(0, 3, 1, 2)
        maps = F.conv2d(cells.view(count, CELLS, CELLS, channels).permute(0, 3, 1, 2), kernel, bias, padding=1)
        return maps.permute(0, 2, 3, 1).reshape(count, CELLS * CELLS, weight.shape[0])
    padded, row = F.pad(cells.view(count, CELLS, CELLS, channels), (0, 0, 1, 1, 1, 1)), (CELLS + 2) * channels
    around = padded.as_strided((count, CELLS, CELLS, 3, 3 * channels), ((CELLS + 2) * row, row, channels, row, 1))
    return F.linear(around.reshape(count, CELLS * CELLS, 9 * channels), weight, bias)


class _Alignment:
    """Gauss-Newton steps on brightness constancy: least squares over the 4 x 4 greys of each cell.

    `texture` [N, 144, 3]: the sums of gx gx, gy gy and gx gy, which say what can be seen of a motion, bounded.
    """

    def __init__(self, grey: Float[Tensor, "N 1 48 48"], grey_2: Float[Tensor, "N 1 48 48"], damping: Tensor) -> None:
        self._grey, self._grey_2 = grey, grey_2
        # Half the gradient, so that sums of its products over the 16 greys of a cell are means of the gradient's, times 4.
        wide = F.pad(grey * (1 / _CELL_GREYS), (1, 1, 1, 1), mode="replicate")
        middle, inside = wide[:, :, 1:-1], wide[:, :, :, 1:-1]
        slope = torch.cat([middle[..., 2:] - middle[..., :-2], inside[:, :, 2:] - inside[:, :, :-2]], dim=1)
        self._slope = slope
        sums = _of_cells(torch.cat([slope * slope, slope[:, :1] * slope[:, 1:]], dim=1))
        self.texture = sums.clamp(max=0.6).transpose(1, 2)
        squares, mixed = sums[:, :2] + damping, sums[:, 2:]
        share = _SLOPE / (squares[:, :1] * squares[:, 1:] - mixed * mixed)
        squares, mixed = squares * share, mixed * -share
        # The inverse of the matrix of squares and mixed products, [N, 2, 2, 144].
        self._inverse = torch.cat([squares[:, 1:], mixed, mixed, squares[:, :1]], dim=1).view(-1, 2, 2, CELLS * CELLS)

    def step(
        self, places: Float[Tensor, "N 48 48 2"], measure: bool
    ) -> tuple[Float[Tensor, "N 144 2"], Float[Tensor, "N 144 M"]]:
        """What is too much in a flow that puts the greys at `places`, in cells; and, to `measure`, the difference left."""
        there = F.grid_sample(self._grey_2, places, mode="bilinear", padding_mode="border", align_corners=False)
        change = there - self._grey
        products = self._slope * change
        sums = _of_cells(torch.cat([products, change.abs()], dim=1) if measure else products)
        delta = (self._inverse * sums[:, None, :2]).sum(dim=2).clamp(-_FAR / _CELL_GREYS, _FAR / _CELL_GREYS)
        return delta.transpose(1, 2), sums[:, 2:].transpose(1, 2)


# Twice the gradient over 4 is what is multiplied; a step is in greys, a cell is 4 of them; see _Alignment.
_SLOPE = 2 / _CELL_GREYS / _CELL_GREYS


def _of_cells(maps: Float[Tensor, "N C 48 48"]) -> Float[Tensor, "N C 144"]:
    """Sums over the greys of each cell."""
    count, channels = maps.shape[:2]
    rows = maps.view(count, channels, CELLS, _CELL_GREYS, GREYS).sum(dim=3)
    return rows.view(count, channels, CELLS * CELLS, _CELL_GREYS).sum(dim=3)


def upsampled(flow: Float[Tensor, "N 144 2"], side: int, every: int = 1) -> Float[Tensor, "N 2 S S"]:
    """Bilinear to `side` x `side` px of a frame that is `SIDE` px in all, in its px; only `every` so manieth row and column."""
    up = _interpolation(CELLS, side).to(flow)[::every]
    maps = (flow.transpose(1, 2).reshape(-1, CELLS) @ up.T).view(2 * flow.shape[0], CELLS, -1)
    return torch.bmm((up * _CELL_PX).expand(2 * flow.shape[0], -1, -1), maps).view(flow.shape[0], 2, up.shape[0], up.shape[0])


_known: dict[tuple[int, int], Tensor] = {}


def _interpolation(few: int, many: int) -> Float[Tensor, "many few"]:
    """The matrix of bilinear interpolation between centres, constant beyond the outer ones."""
    if (few, many) not in _known:
        lines: Any = F.interpolate(torch.eye(few)[None], size=many, mode="linear", align_corners=False)
        _known[few, many] = lines[0].T.contiguous()
    return _known[few, many]
