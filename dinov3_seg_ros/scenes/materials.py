"""Materials of a scene's objects: mostly in colours that are usual for their kind indoors, sometimes in any.

As in real rooms, colours hint at the class but do not determine it: wood is floor, door, table and cabinet; white is
wall, ceiling, door and window frame.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.scenes.labels import Label
from dinov3_seg_ros.scenes.textures import TextureBank

RAMP_STEPS = 256


class _Colours(NamedTuple):
    """A range of colours: hue in degrees, saturation and value 0..1."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


_WHITE = _Colours((20, 60), (0.0, 0.1), (0.85, 0.98))
_PASTEL = _Colours((20, 260), (0.04, 0.22), (0.7, 0.95))
_GREY = _Colours((190, 240), (0.0, 0.12), (0.3, 0.65))
_BLACK = _Colours((200, 260), (0.0, 0.3), (0.05, 0.2))
_LIGHT_WOOD = _Colours((26, 40), (0.3, 0.55), (0.65, 0.9))
_DARK_WOOD = _Colours((14, 30), (0.45, 0.75), (0.2, 0.5))
_CARDBOARD = _Colours((28, 36), (0.35, 0.5), (0.55, 0.78))
_FABRIC = _Colours((195, 375), (0.5, 0.9), (0.25, 0.75))

_USUAL: dict[Label, tuple[_Colours, ...]] = {
    Label.FLOOR: (_DARK_WOOD, _DARK_WOOD, _GREY, _LIGHT_WOOD),
    Label.WALL: (_WHITE, _PASTEL, _PASTEL),
    Label.CEILING: (_WHITE,),
    Label.DOOR: (_DARK_WOOD, _LIGHT_WOOD, _WHITE),
    Label.WINDOW: (_WHITE, _WHITE, _GREY),
    Label.TABLE: (_LIGHT_WOOD, _LIGHT_WOOD, _DARK_WOOD, _WHITE),
    Label.CHAIR: (_FABRIC, _FABRIC, _BLACK),
    Label.CABINET: (_WHITE, _GREY, _LIGHT_WOOD, _DARK_WOOD),
    Label.PLANT: (_Colours((8, 24), (0.5, 0.75), (0.45, 0.75)), _WHITE),
    Label.BOX: (_CARDBOARD,),
}


class Material(NamedTuple):
    """The look of a surface: a pattern, the colours that it is mapped to, and its own light."""

    texture: int
    """Row of the texture bank."""

    ramp: int
    """Row of the scene's colour ramps."""

    tile: float
    """Metres covered by one repetition of the texture; 0 stretches the texture over each face once."""

    emission: float
    """Own light of the surface, in units of the scene's light; 0 for a surface that the scene lights."""


class Painter:
    """Chooses the materials of one scene, and keeps their colour ramps.

    A ramp is float32 (RAMP_STEPS, 3): linear-light RGB reflectance 0..1 for each value of a texture.

    Args:
        rng: makes every choice.
        bank: the textures to choose from.
        odd_colours: share of objects that may have any colour, 0..1.
    """

    def __init__(self, rng: np.random.Generator, bank: TextureBank, odd_colours: float) -> None:
        self.rng = rng
        self._usual_share = 1.0 - odd_colours
        self._rows_of_kind = {
            kind: [row for row, name in enumerate(bank.kinds) if name == kind] for kind in dict.fromkeys(bank.kinds)
        }
        self._everyday = tuple(kind for kind in self._rows_of_kind if kind != "outdoors")
        self._ramps: list[NDArray[np.float32]] = []

    @property
    def ramps(self) -> NDArray[np.float32]:
        """(ramps, RAMP_STEPS, 3): every ramp drawn so far."""
        return np.stack(self._ramps)

    def any(
        self, tile: tuple[float, float] = (0.4, 1.4), plain: float = 0.4, usual_for: Label | None = None
    ) -> Material:
        """Choose any colour, or mostly one ``usual_for`` a class; patterned with probability ``1 - plain``."""
        kind = "plain" if self.rng.random() < plain else str(self.rng.choice(self._everyday))
        if usual_for is not None and self.rng.random() < self._usual_share:
            base = self._usual_colour(usual_for)
            companion = base * (1.0, 1.0, self.rng.uniform(0.6, 0.9))
        else:
            base = self._any_colour()
            companion = self._companion(base)
        return Material(self._texture(kind), self._add_ramp(base, companion), self.rng.uniform(*tile), 0.0)

    def foliage(self) -> Material:
        """Leaves: mostly yellow-green to blue-green, sometimes any hue."""
        hue = self.rng.uniform(75, 150) if self.rng.random() < self._usual_share else self.rng.uniform(0, 360)
        base = np.array((hue, self.rng.uniform(0.25, 0.8), self.rng.uniform(0.25, 0.8)))
        kind = str(self.rng.choice(("cloudy", "stripes", "plain")))
        return Material(self._texture(kind), self._add_ramp(base, base * (1.0, 1.0, 0.7)), 0.3, 0.0)

    def skin(self) -> Material:
        """Skin, from very light to very dark."""
        base = np.array((self.rng.uniform(12, 30), self.rng.uniform(0.25, 0.55), self.rng.uniform(0.3, 0.95)))
        return Material(self._texture("plain"), self._add_ramp(base, base), 0.5, 0.0)

    def hair(self) -> Material:
        """Hair: black, brown, red, fair or grey."""
        base = np.array((self.rng.uniform(12, 45), self.rng.uniform(0.05, 0.7), self.rng.uniform(0.1, 0.85)))
        return Material(self._texture("cloudy"), self._add_ramp(base, base * (1.0, 1.0, 0.7)), 0.1, 0.0)

    def darker(self, material: Material, factor: float) -> Material:
        """The same surface with its reflectance scaled by ``factor``."""
        self._ramps.append(np.clip(self._ramps[material.ramp] * factor, 0.0, 0.95).astype(np.float32))
        return material._replace(ramp=len(self._ramps) - 1)

    def plain(self) -> Material:
        """One colour, nearly without a pattern."""
        return self.any(plain=1.0)

    def view(self) -> Material:
        """What is seen through a window: by day, at dusk or by night."""
        sky = np.array((self.rng.uniform(180, 240), self.rng.uniform(0.0, 0.6), self.rng.uniform(0.5, 1.0)))
        if self.rng.random() > self._usual_share:
            sky[0] = self.rng.uniform(0, 360)
        far, near, ground = (self._any_colour() * (1.0, 0.7, 0.8) for _ in range(3))
        steps = np.array((0.0, 0.28, 0.36, 0.44, 0.5, 0.58, 0.66, 1.0))
        colours = _linear_rgb(np.stack((ground, ground, near, near, far, far, sky * (1.0, 0.3, 1.0), sky)))
        positions = np.linspace(0.0, 1.0, RAMP_STEPS)
        self._ramps.append(np.stack([np.interp(positions, steps, channel) for channel in colours.T], 1))
        self._ramps[-1] = self._ramps[-1].astype(np.float32)
        return Material(self._texture("outdoors"), len(self._ramps) - 1, 0.0, self.rng.uniform(0.35, 1.8))

    def lamp(self) -> Material:
        """A bright, nearly white surface."""
        base = np.array((self.rng.uniform(0, 360), self.rng.uniform(0.0, 0.15), 1.0))
        return Material(self._texture("plain"), self._add_ramp(base, base), 1.0, self.rng.uniform(1.0, 2.5))

    def _texture(self, kind: str) -> int:
        return int(self.rng.choice(self._rows_of_kind[kind]))

    def _any_colour(self) -> NDArray[np.float64]:
        """Hue in degrees, saturation and value; most colours are muted, as indoors."""
        saturation = self.rng.beta(1.2, 2.2) if self.rng.random() < 0.7 else self.rng.uniform(0.3, 0.95)
        return np.array((self.rng.uniform(0, 360), saturation, self.rng.uniform(0.18, 0.97)))

    def _usual_colour(self, label: Label) -> NDArray[np.float64]:
        """Hue in degrees, saturation and value of a colour usual for a class."""
        choices = _USUAL[label]
        ranges = choices[int(self.rng.integers(len(choices)))]
        return np.array([self.rng.uniform(*limits) for limits in ranges]) % (360.0, 2.0, 2.0)

    def _companion(self, base: NDArray[np.float64]) -> NDArray[np.float64]:
        """A second colour to go with ``base``: a tone of it, a neighbour, or any other."""
        kind = self.rng.random()
        if kind < 0.15:
            return self._any_colour()
        hue = base[0] + (self.rng.normal(0, 25) if kind < 0.5 else 0.0)
        value = base[2] * self.rng.uniform(0.5, 0.9)
        return np.array((hue % 360, np.clip(base[1] * self.rng.uniform(0.7, 1.3), 0, 1), value))

    def _add_ramp(self, high: NDArray[np.float64], low: NDArray[np.float64]) -> int:
        dark, light = _linear_rgb(np.stack((low, high)))
        weight = np.linspace(0.0, 1.0, RAMP_STEPS)[:, None]
        self._ramps.append((dark + (light - dark) * weight).astype(np.float32))
        return len(self._ramps) - 1


def _linear_rgb(hsv: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert colours (N, 3) from hue in degrees, saturation and value to linear-light RGB 0.01..0.95."""
    rgb = cv2.cvtColor(hsv.astype(np.float32)[None], cv2.COLOR_HSV2RGB)[0]
    linear: NDArray[np.float64] = rgb.astype(np.float64) ** 2.2
    return linear.clip(0.01, 0.95)
