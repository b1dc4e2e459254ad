"""What the renderer reads of a scene: flat arrays of surfaces, their light and their colours.

World coordinates are metres, x and y level and z up, with the floor at z = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ELLIPSOID = 0
FRUSTUM = 1


class Quads(NamedTuple):
    """Parallelograms seen from one side; all arrays have one row for each."""

    origin: NDArray[np.float64]
    """(Q, 3): a corner."""
    edge_u: NDArray[np.float64]
    """(Q, 3): from the corner along the first edge."""
    edge_v: NDArray[np.float64]
    """(Q, 3): from the corner along the second edge."""
    normal: NDArray[np.float64]
    """(Q, 3): unit vector towards the visible side."""
    texels: NDArray[np.float64]
    """(Q, 4): texels along u and v over the whole face, and the offset of the corner in u and v."""
    texture: NDArray[np.int64]
    """(Q,): row of the texture bank."""
    ramp: NDArray[np.int64]
    """(Q,): row of the scene's colour ramps."""
    emission: NDArray[np.float64]
    """(Q,): own light, 0 where lit by the scene."""
    label: NDArray[np.uint8]
    """(Q,): class id."""


class Solids(NamedTuple):
    """Ellipsoids and cone frusta; all arrays have one row for each.

    ``to_unit`` takes a vector from the centre to the body's own frame, where the body is the unit ball, or the points
    with ``|z| <= 1`` no further than ``1 + taper * z`` from the z axis.
    """

    centre: NDArray[np.float64]
    """(S, 3)."""
    to_unit: NDArray[np.float64]
    """(S, 3, 3)."""
    from_unit: NDArray[np.float64]
    """(S, 3, 3): the inverse of ``to_unit``."""
    kind: NDArray[np.int64]
    """(S,): ``ELLIPSOID`` or ``FRUSTUM``."""
    taper: NDArray[np.float64]
    """(S,)."""
    texels: NDArray[np.float64]
    """(S,): texels per metre."""
    texture: NDArray[np.int64]
    """(S,): row of the texture bank."""
    ramp: NDArray[np.int64]
    """(S,): row of the scene's colour ramps."""
    emission: NDArray[np.float64]
    """(S,): own light, 0 where lit by the scene."""
    label: NDArray[np.uint8]
    """(S,): class id."""


class QuadLight(NamedTuple):
    """Light on each quad, on a grid of its own spread over the whole face."""

    start: NDArray[np.int64]
    """(Q,): where the grid begins in ``values``."""
    columns: NDArray[np.int64]
    """(Q,): grid points along u, at least 2."""
    rows: NDArray[np.int64]
    """(Q,): grid points along v, at least 2."""
    values: NDArray[np.float32]
    """(points,): row by row, one grid after the other."""


class Model(NamedTuple):
    """A scene as the renderer needs it."""

    quads: Quads
    solids: Solids
    quad_light: QuadLight
    solid_light: NDArray[np.float32]
    """(S, 6): light that falls on each solid from -x, +x, -y, +y, -z and +z."""
    textures: NDArray[np.uint8]
    """(textures, texels): mip pyramids."""
    ramps: NDArray[np.float32]
    """(ramps, 256, 3): linear-light RGB for each texture value."""
    tint: NDArray[np.float32]
    """(3,): colour of the light."""
