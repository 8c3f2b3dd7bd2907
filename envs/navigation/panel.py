"""One picture for people of a moment of an episode: what it sees, what it is told, where it is.

    +-----------------+--------+-----------------+
    |         +-------|  goal  |                 |
    |         | policy+--------+       map       |
    |live view|  sees |  the   |                 |
    |with plan+-------|  body  |                 |
    +-----------------+--------+-----------------+
    | wheeled   time 3.2 s   speed 0.61 m/s  ... |
    +--------------------------------------------+

Dark, and the same on light and dark pages. All lengths scale with the height asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from kineflow.contracts import KineflowError
from kineflow.envs.navigation.drawing import Colour

GROUND: Colour = (22, 24, 30)
CARD: Colour = (38, 41, 52)
INK: Colour = (241, 241, 244)
SOFT: Colour = (150, 154, 168)
ACCENT: Colour = (167, 139, 250)
GOOD: Colour = (79, 209, 161)
BAD: Colour = (251, 177, 112)
DESIGN_PX = 448  # the height at which lengths below are as written
MARGIN, GAP, CAPTION, ROUND = 10, 8, 36, 10
LEAST_FOR_TEXT = 240  # lower panels have no room for words

Picture = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Layout:
    """Where things are in a panel `height` pixels high whose live view is `aspect` times as wide as high."""

    height: int
    aspect: float = 1.0

    @property
    def unit(self) -> float:
        return self.height / DESIGN_PX

    def px(self, length: float) -> int:
        """A length of the design in pixels of this panel."""
        return max(1, round(length * self.unit))

    @property
    def live(self) -> tuple[int, int]:
        """Width and height of the live view."""
        height = self.height - self.px(MARGIN) - (self.px(CAPTION) if self.has_text else self.px(MARGIN))
        return round(height * self.aspect), height

    @property
    def inset(self) -> tuple[int, int]:
        """Width and height of the goal and of the body's picture."""
        height = (self.live[1] - self.px(GAP)) // 2
        return round(height * self.aspect), height

    @property
    def seen(self) -> tuple[int, int]:
        """Width and height of the policy's view: of 96 pixels each is one at the height of the design."""
        height = self.px(96)
        return round(height * self.aspect), height

    @property
    def map_size(self) -> int:
        return self.live[1]

    @property
    def width(self) -> int:
        """Of the panel; even, as videos need it."""
        width = 2 * self.px(MARGIN) + 2 * self.px(GAP) + self.live[0] + self.inset[0] + self.map_size
        return width + width % 2

    @property
    def has_text(self) -> bool:
        return self.height >= LEAST_FOR_TEXT


@dataclass(frozen=True, eq=False)
class GoalCard:
    """What the policy is told: a picture, or words. `title` names it; `progress` 0..1: how far in a clip (None: no clip)."""

    title: str
    picture: Picture | None = None
    words: str = ""
    progress: float | None = None


@dataclass(frozen=True)
class Fact:
    """Of the caption: a name, its value, and the widest value that it may take, so that nothing jumps about in a video."""

    name: str
    value: str
    widest: str = ""


@dataclass(frozen=True)
class Ending:
    """How an episode ended, for the last picture."""

    label: str
    is_good: bool


def compose(
    layout: Layout,
    live: Picture,
    goal: GoalCard | None,
    body: Picture,
    seen: Picture,
    world_map: Picture,
    facts: Sequence[Fact] = (),
    bar_px: float = 0.0,
    ending: Ending | None = None,
    seen_title: str = "",
) -> UInt8[np.ndarray, "height width 3"]:
    """The panel. `body`: the body from outside; `seen`: the policy's own picture; `bar_px`: length of the map's bar of 1 m.


    Raises:
        KineflowError: a picture has not the size that the layout gives it.
    """
    parts = (("live view", live, layout.live), ("body", body, layout.inset), ("map", world_map, (layout.map_size,) * 2))
    for name, picture, (width, height) in parts:
        if picture.shape != (height, width, 3):
            raise KineflowError(f"the {name} is {picture.shape}; this panel's layout has room for {(height, width, 3)}")
    canvas = np.full((layout.height, layout.width, 3), GROUND, np.uint8)
    top, left = layout.px(MARGIN), layout.px(MARGIN)
    _paste(canvas, live, left, top, layout)
    middle = left + layout.live[0] + layout.px(GAP)
    low = top + layout.live[1] - layout.inset[1]
    if goal is not None:
        _paste(canvas, _goal_picture(goal, layout), middle, top, layout)
    _paste(canvas, body, middle, low, layout)
    own = _framed(enlarged(seen, *layout.seen), layout.px(1.5))
    corner = left + layout.live[0] - own.shape[1] - layout.px(8), top + layout.px(8)
    _paste(canvas, own, *corner, layout)
    right = middle + layout.inset[0] + layout.px(GAP)
    _paste(canvas, world_map, right, top, layout)
    if not layout.has_text:
        return canvas
    words = _Words(canvas, layout)
    words.chip("live view", left, top)
    if goal is not None:
        words.chip(goal.title, middle, top)
        if goal.words:
            words.quote(goal.words, (middle, top + layout.px(30), *layout.inset))
    words.chip("seen from behind", middle, low)
    words.chip(seen_title or "policy sees", corner[0] - layout.px(4), corner[1] + own.shape[0] - layout.px(30))
    words.chip("map", right, top)
    if bar_px:
        words.text("1 m", right + layout.px(14) + bar_px / 2, top + layout.map_size - layout.px(24), 12, INK, "mm")
    words.caption(facts, left, top + layout.live[1], layout.width - 2 * left)
    if ending is not None:
        words.pill(ending, right + layout.map_size, top)
    return words.picture()


def compose_portrait(live: Picture, world_map: Picture, layout: Layout, bar_px: float = 0.0) -> Picture:
    """The live view above the map, for pictures that stand side by side; lengths are those of `layout`."""
    (height, width), size = live.shape[:2], world_map.shape[0]
    margin, gap = layout.px(MARGIN), layout.px(GAP)
    wide = max(width, size) + 2 * margin
    canvas = np.full((height + size + 2 * margin + gap, wide + wide % 2, 3), GROUND, np.uint8)
    lefts = margin + (max(width, size) - width) // 2, margin + (max(width, size) - size) // 2
    low = margin + height + gap
    _paste(canvas, live, lefts[0], margin, layout)
    _paste(canvas, world_map, lefts[1], low, layout)
    if not layout.has_text:
        return canvas
    words = _Words(canvas, layout)
    words.chip("live view", lefts[0], margin)
    words.chip("map", lefts[1], low)
    if bar_px:
        words.text("1 m", lefts[1] + layout.px(14) + bar_px / 2, low + size - layout.px(24), 12, INK, "mm")
    return words.picture()


def enlarged(picture: Picture, width: int, height: int) -> Picture:
    """`picture` in another size: smooth, and sharp where it is made smaller."""
    is_smaller = width < picture.shape[1]
    return np.asarray(
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC), np.uint8
    )


def _framed(picture: Picture, width: int) -> Picture:
    """With a light edge, which tells it from what it lies on."""
    framed = np.full((picture.shape[0] + 2 * width, picture.shape[1] + 2 * width, 3), INK, np.uint8)
    framed[width:-width, width:-width] = picture
    return framed


def _goal_picture(goal: GoalCard, layout: Layout) -> Picture:
    width, height = layout.inset
    if goal.picture is None:
        return np.full((height, width, 3), CARD, np.uint8)
    picture = enlarged(goal.picture, width, height)
    if goal.progress is not None:
        bar = layout.px(4)
        picture[-bar:] = picture[-bar:] // 3
        picture[-bar:, : max(bar, round(goal.progress * width))] = ACCENT
    return picture


def _paste(canvas: Picture, picture: Picture, left: int, top: int, layout: Layout) -> None:
    """With rounded corners."""
    height, width = picture.shape[:2]
    covered = _rounded(width, height, layout.px(ROUND))
    part = canvas[top : top + height, left : left + width]
    part[:] = np.rint(part + covered * (picture.astype(np.float32) - part)).astype(np.uint8)


@cache
def _rounded(width: int, height: int, radius: int) -> np.ndarray:
    """How much of each pixel [H, W, 1] of a rectangle lies inside its rounded corners, 0..1."""
    beyond = [np.maximum(np.abs(np.arange(n) + 0.5 - n / 2) - (n / 2 - radius), 0.0) for n in (height, width)]
    return np.asarray(np.clip(radius + 0.5 - np.hypot(beyond[0][:, None], beyond[1]), 0.0, 1.0), np.float32)[:, :, None]


class _Words:
    """Text on a panel. Pillow comes with a font of its own, so words look the same everywhere."""

    def __init__(self, canvas: Picture, layout: Layout) -> None:
        from PIL import Image, ImageDraw

        self._image = Image.fromarray(canvas)
        self._draw = ImageDraw.Draw(self._image, "RGBA")
        self._layout = layout

    def picture(self) -> Picture:
        return np.array(self._image)

    def text(self, words: str, x: float, y: float, size: float, colour: Colour, anchor: str = "ls") -> float:
        """Draw, and return the width in pixels."""
        font = _font(self._layout.px(size))
        self._draw.text((x, y), words, fill=colour, font=font, anchor=anchor)
        return float(font.getlength(words))

    def chip(self, words: str, left: int, top: int) -> None:
        """A small label in the upper left corner of a picture."""
        px, font = self._layout.px, _font(self._layout.px(12))
        x, y = left + px(8), top + px(8)
        box = (x, y, x + font.getlength(words) + px(12), y + px(19))
        self._draw.rounded_rectangle(box, px(6), fill=(16, 17, 22, 176))
        self._draw.text((x + px(6), y + px(10)), words, fill=INK, font=font, anchor="lm")

    def pill(self, ending: Ending, right: int, top: int) -> None:
        """How it ended, in the upper right corner of the map."""
        px, font = self._layout.px, _font(self._layout.px(15))
        width = font.getlength(ending.label) + px(22)
        x, y = right - px(8) - width, top + px(8)
        self._draw.rounded_rectangle((x, y, x + width, y + px(27)), px(13), fill=(*(GOOD if ending.is_good else BAD), 255))
        self._draw.text((x + width / 2, y + px(14)), ending.label, fill=(16, 17, 22), font=font, anchor="mm")

    def quote(self, words: str, box: tuple[int, int, int, int]) -> None:
        """Words in the middle of a card (left, top, width, height), as large as they fit."""
        left, top, width, height = box
        room, inset = self._layout.px(30), self._layout.px(14)
        for size in (22, 20, 18, 16, 14, 12):
            font = _font(self._layout.px(size))
            lines = _wrapped(f"\u201c{words}\u201d", font, width - 2 * inset)
            step = self._layout.px(1.3 * size)
            if len(lines) * step <= height - room:
                break
        y = top + (height - room - len(lines) * step) / 2 + step / 2
        for number, line in enumerate(lines):
            self._draw.text((left + width / 2, y + number * step), line, fill=INK, font=font, anchor="mm")

    def caption(self, facts: Sequence[Fact], left: int, top: int, width: int) -> None:
        """Names, softly, and values, spread over the width."""
        px, font = self._layout.px, _font(self._layout.px(14))
        names = [font.getlength(fact.name) + px(5) if fact.name else 0.0 for fact in facts]
        lengths = [n + max(font.getlength(f.value), font.getlength(f.widest)) for n, f in zip(names, facts)]
        space = (width - sum(lengths) - 2 * px(4)) / max(len(facts) - 1, 1)
        x, y = float(left + px(4)), top + px(18)
        for fact, name, length in zip(facts, names, lengths):
            self._draw.text((x, y), fact.name, fill=SOFT, font=font, anchor="lm")
            self._draw.text((x + name, y), fact.value, fill=INK, font=font, anchor="lm")
            x += length + max(min(space, px(70)), px(8))


def _wrapped(words: str, font: Any, width: float) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@cache
def _font(size: int) -> Any:
    try:
        from PIL import ImageFont
    except ImportError as error:
        raise KineflowError("words on pictures need Pillow; install it with `pip install 'kineflow[report]'`") from error
    return ImageFont.load_default(size)
