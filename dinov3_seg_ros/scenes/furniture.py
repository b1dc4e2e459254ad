"""The objects of a room. Each function chooses sizes and materials of one, and how to build it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from dinov3_seg_ros.scenes.geometry import Part, turn_about
from dinov3_seg_ros.scenes.labels import Label
from dinov3_seg_ros.scenes.materials import Material, Painter


class Piece(NamedTuple):
    """An object that is ready to be placed in a room."""

    label: Label
    width: float
    """Metres along its x."""
    depth: float
    """Metres along its y; its front looks along +y."""
    height: float
    """Metres."""
    build: Callable[[Part], None]


def door(painter: Painter) -> Piece:
    """A closed door with frame, panels and lever; the wall is its plane y = 0."""
    rng = painter.rng
    width, height = rng.uniform(0.85, 1.1), rng.uniform(2.0, 2.2)
    frame, metal = painter.any(usual_for=Label.DOOR), painter.plain()
    leaf = painter.any(plain=0.5, usual_for=Label.DOOR)
    panel = painter.darker(leaf, rng.uniform(0.5, 0.8))
    border = rng.uniform(0.08, 0.14)
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    handle_x = rng.choice((-1.0, 1.0)) * (0.5 * width - 0.09)

    def build(part: Part) -> None:
        part.box((0, 0.02, 0.5 * height), (width, 0.04, height), leaf)
        for side in (-1, 1):
            part.box((side * 0.5 * (width + border), 0.05, 0.5 * height), (border, 0.1, height), frame)
        part.box((0, 0.05, height + 0.5 * border), (width + 2 * border, 0.1, border), frame)
        panel_width, panel_height = (width - 0.2) / columns, (height - 0.2) / rows
        for row in range(rows):
            for column in range(columns):
                x = (column + 0.5) * panel_width - 0.5 * (width - 0.2)
                z = 0.12 + (row + 0.5) * panel_height
                part.box((x, 0.042, z), (panel_width - 0.1, 0.02, panel_height - 0.1), panel)
        part.box((handle_x, 0.06, 1.02), (0.05, 0.03, 0.2), metal)
        part.box((handle_x * 0.86, 0.1, 1.05), (0.14, 0.03, 0.03), metal)

    return Piece(Label.DOOR, width + 2 * border, 0.1, height + border, build)


def window(painter: Painter) -> Piece:
    """A window with frame, sill, mullions and a view; the wall is its plane y = 0."""
    rng = painter.rng
    width, height, sill = rng.uniform(1.1, 2.2), rng.uniform(1.1, 1.5), rng.uniform(0.7, 1.0)
    frame, view = painter.any(plain=0.7, usual_for=Label.WINDOW), painter.view()
    columns, rows = int(rng.integers(2, 4)), int(rng.integers(1, 3))
    border = rng.uniform(0.06, 0.1)
    middle = sill + 0.5 * height

    def build(part: Part) -> None:
        part.box((0, 0.01, middle), (width, 0.02, height), view)
        for side in (-1, 1):
            part.box((side * 0.5 * width, 0.04, middle), (border, 0.08, height + border), frame)
            part.box((0, 0.04, middle + side * 0.5 * height), (width + border, 0.08, border), frame)
        for column in range(1, columns):
            x = (column / columns - 0.5) * width
            part.box((x, 0.03, middle), (0.05, 0.06, height), frame)
        for row in range(1, rows):
            z = sill + height * (1 - 0.33 * row)
            part.box((0, 0.03, z), (width, 0.06, 0.05), frame)
        part.box((0, 0.09, sill - 0.03), (width + 0.2, 0.18, 0.04), frame)

    return Piece(Label.WINDOW, width + 0.2, 0.18, sill + height + border, build)


def table(painter: Painter) -> Piece:
    """A table on four legs, or a round one on a pedestal."""
    rng = painter.rng
    height, thickness = rng.uniform(0.68, 0.78), rng.uniform(0.03, 0.07)
    top = painter.any(usual_for=Label.TABLE)
    legs = top if rng.random() < 0.5 else painter.any(plain=0.6, usual_for=Label.TABLE)
    under = height - thickness

    if rng.random() < 0.3:
        radius = rng.uniform(0.45, 0.65)

        def build_round(part: Part) -> None:
            part.frustum((0, 0, under), (0, 0, height), radius, radius, top)
            part.frustum((0, 0, 0.03), (0, 0, under), 0.06, 0.06, legs)
            part.frustum((0, 0, 0), (0, 0, 0.06), 0.6 * radius, 0.2 * radius, legs)

        return Piece(Label.TABLE, 2 * radius, 2 * radius, height, build_round)

    width, depth = rng.uniform(1.1, 1.8), rng.uniform(0.65, 0.95)
    leg, apron = rng.uniform(0.05, 0.1), rng.uniform(0.0, 0.12)

    def build(part: Part) -> None:
        part.box((0, 0, height - 0.5 * thickness), (width, depth, thickness), top)
        x, y = 0.5 * width - leg, 0.5 * depth - leg
        for side in (-1, 1):
            for end in (-1, 1):
                part.box((side * x, end * y, 0.5 * under), (leg, leg, under), legs)
            if apron > 0.04:
                part.box((0, side * y, under - 0.5 * apron), (2 * x, 0.03, apron), legs)
                part.box((side * x, 0, under - 0.5 * apron), (0.03, 2 * y, apron), legs)

    return Piece(Label.TABLE, width, depth, height, build)


def chair(painter: Painter) -> Piece:
    """A chair with a panelled or slatted back, on four legs or on a swivel column."""
    rng = painter.rng
    size, seat_height, height = rng.uniform(0.42, 0.52), rng.uniform(0.42, 0.48), rng.uniform(0.85, 1.08)
    seat = painter.any(usual_for=Label.CHAIR)
    frame = seat if rng.random() < 0.4 else painter.any(plain=0.6, usual_for=Label.CHAIR)
    swivels, slatted, has_arms = rng.random() < 0.3, rng.random() < 0.35, rng.random() < 0.3
    leg = rng.uniform(0.035, 0.055)

    def build(part: Part) -> None:
        half = 0.5 * size - 0.5 * leg
        part.box((0, 0, seat_height - 0.03), (size, size, 0.07), seat)
        if swivels:
            part.frustum((0, 0, 0.08), (0, 0, seat_height - 0.06), 0.035, 0.035, frame)
            for spoke in range(5):
                angle = 2 * math.pi * spoke / 5
                tip = (0.55 * size * math.sin(angle), 0.55 * size * math.cos(angle), 0.05)
                part.frustum((0, 0, 0.1), tip, 0.035, 0.025, frame)
        else:
            for side in (-1, 1):
                for end in (-1, 1):
                    centre = (side * half, end * half, 0.5 * seat_height - 0.03)
                    part.box(centre, (leg, leg, seat_height - 0.06), frame)
        back = height - seat_height
        if slatted:
            for side in (-1, 1):
                part.box((side * half, -half, seat_height + 0.5 * back), (leg, leg, back), frame)
            for slat in range(3):
                z = seat_height + back * (0.35 + 0.28 * slat)
                part.box((0, -half, z), (size - leg, 0.025, 0.17 * back), seat)
        else:
            part.box((0, -half, seat_height + 0.55 * back), (size, 0.06, 0.9 * back), seat, turn_about("x", 0.08))
        if has_arms:
            for side in (-1, 1):
                part.box((side * half, 0.02, seat_height + 0.22), (0.05, 0.85 * size, 0.035), frame)
                part.box((side * half, 0.3 * size, seat_height + 0.1), (0.035, 0.035, 0.22), frame)

    return Piece(Label.CHAIR, size + 0.05, size + 0.05, height, build)


def cabinet(painter: Painter) -> Piece:
    """A chest of drawers, a cupboard with doors, or shelves with books."""
    rng = painter.rng
    width, depth, height = rng.uniform(0.7, 1.4), rng.uniform(0.36, 0.5), rng.uniform(0.8, 1.95)
    body = painter.any(usual_for=Label.CABINET)
    if rng.random() < 0.35:
        books = [painter.any(plain=0.8) for _ in range(4)]
        build = _bookcase(painter, width, depth, height, body, books)
    else:
        build = _cupboard(painter, width, depth, height, body)
    return Piece(Label.CABINET, width, depth, height, build)


def _cupboard(painter: Painter, width: float, depth: float, height: float, body: Material) -> Callable[[Part], None]:
    rng = painter.rng
    front = painter.darker(body, rng.uniform(0.7, 1.3)) if rng.random() < 0.6 else painter.any(usual_for=Label.CABINET)
    metal, plinth = painter.plain(), painter.darker(body, 0.4)
    has_drawers = rng.random() < 0.55
    columns = int(rng.integers(1, 3)) if has_drawers else max(2, round(width / 0.5))
    rows = max(2, round(height / rng.uniform(0.25, 0.4))) if has_drawers else int(rng.integers(1, 3))

    def build(part: Part) -> None:
        part.box((0, 0, 0.5 * height + 0.03), (width, depth, height - 0.06), body)
        part.box((0, -0.02, 0.03), (width - 0.06, depth - 0.06, 0.06), plinth)
        front_width, front_height = (width - 0.04) / columns, (height - 0.12) / rows
        for row in range(rows):
            for column in range(columns):
                x = (column + 0.5) * front_width - 0.5 * (width - 0.04)
                z = 0.08 + (row + 0.5) * front_height
                part.box((x, 0.5 * depth, z), (front_width - 0.03, 0.04, front_height - 0.03), front)
                if has_drawers:
                    part.box((x, 0.5 * depth + 0.035, z), (0.35 * front_width, 0.03, 0.03), metal)
                else:
                    inner = x + (0.5 if column % 2 == 0 else -0.5) * (front_width - 0.14)
                    part.box((inner, 0.5 * depth + 0.035, z), (0.03, 0.03, 0.2), metal)

    return build


def _bookcase(
    painter: Painter, width: float, depth: float, height: float, body: Material, books: list[Material]
) -> Callable[[Part], None]:
    rng = painter.rng
    shelves = max(2, round(height / 0.36))
    pitch = (height - 0.04) / shelves
    back = painter.darker(body, 0.6)
    rows_of_books = []
    for shelf in range(shelves):
        x = -0.5 * width + 0.05
        while x < 0.5 * width - 0.2:
            thickness = rng.uniform(0.06, 0.16)
            book_height = pitch * rng.uniform(0.5, 0.85)
            if rng.random() < 0.85:
                rows_of_books.append((x + 0.5 * thickness, shelf, thickness, book_height, int(rng.integers(4))))
            x += thickness

    def build(part: Part) -> None:
        part.box((0, -0.5 * depth + 0.01, 0.5 * height), (width, 0.02, height), back)
        for side in (-1, 1):
            part.box((side * (0.5 * width - 0.015), 0, 0.5 * height), (0.03, depth, height), body)
        for shelf in range(shelves + 1):
            part.box((0, 0, 0.02 + shelf * pitch), (width, depth, 0.04), body)
        for x, shelf, thickness, book_height, book in rows_of_books:
            z = 0.04 + shelf * pitch + 0.5 * book_height
            part.box((x, 0.02, z), (thickness - 0.01, 0.7 * depth, book_height), books[book])

    return build


def person(painter: Painter) -> Piece:
    """A standing or walking person with hair, shirt, trousers or skirt, and shoes."""
    rng = painter.rng
    scale = rng.uniform(0.88, 1.08)
    girth = rng.uniform(0.92, 1.18)
    stride, swing = rng.uniform(-0.28, 0.28), rng.uniform(-0.25, 0.25)
    skin, hair, shirt, trousers, shoes = (
        painter.skin(),
        painter.hair(),
        painter.any(tile=(0.2, 0.5)),
        painter.any(tile=(0.2, 0.5), plain=0.6),
        painter.plain(),
    )
    sleeve = shirt if rng.random() < 0.6 else skin
    wears_skirt, has_long_hair = rng.random() < 0.25, rng.random() < 0.4

    def at(x: float, y: float, z: float) -> tuple[float, float, float]:
        return (x * scale, y * scale, z * scale)

    def build(part: Part) -> None:
        wide = scale * girth
        for side in (-1, 1):
            step = side * stride
            knee, ankle = at(side * 0.1, 0.6 * step + 0.02, 0.48), at(side * 0.1, step, 0.08)
            part.frustum(at(side * 0.09, 0, 0.88), knee, 0.1 * wide, 0.075 * wide, trousers)
            part.frustum(knee, ankle, 0.075 * wide, 0.055 * wide, skin if wears_skirt else trousers)
            part.ellipsoid(at(side * 0.1, step + 0.05, 0.05), at(0.06, 0.14, 0.055), shoes)
            shoulder, elbow = at(side * 0.2 * girth, 0, 1.38), at(side * 0.26 * girth, -0.5 * side * swing, 1.1)
            hand = at(side * 0.25 * girth, -side * swing + 0.06, 0.86)
            part.ellipsoid(shoulder, (0.075 * wide,) * 3, shirt)
            part.frustum(shoulder, elbow, 0.065 * wide, 0.052 * wide, shirt)
            part.ellipsoid(elbow, (0.053 * wide,) * 3, sleeve)
            part.frustum(elbow, hand, 0.052 * wide, 0.04 * wide, sleeve)
            part.ellipsoid(hand, (0.05 * scale,) * 3, skin)
        part.frustum(at(0, 0, 0.84), at(0, 0, 1.12), 0.175 * wide, 0.155 * wide, trousers, depth=0.65)
        part.frustum(at(0, 0, 1.0), at(0, 0, 1.4), 0.16 * wide, 0.205 * wide, shirt, depth=0.62)
        part.ellipsoid(at(0, 0, 1.4), (0.2 * wide, 0.12 * wide, 0.07 * wide), shirt)
        if wears_skirt:
            part.frustum(at(0, 0, 0.5), at(0, 0, 1.02), 0.27 * wide, 0.16 * wide, trousers, depth=0.75)
        part.frustum(at(0, 0, 1.42), at(0, 0.01, 1.54), 0.055 * scale, 0.05 * scale, skin)
        part.ellipsoid(at(0, 0.015, 1.62), at(0.085, 0.1, 0.125), skin)
        part.ellipsoid(at(0, 0.115, 1.6), at(0.018, 0.025, 0.03), skin)
        part.ellipsoid(at(0, -0.012, 1.66), at(0.097, 0.105, 0.115), hair)
        if has_long_hair:
            part.ellipsoid(at(0, -0.06, 1.54), at(0.1, 0.07, 0.2), hair)

    return Piece(Label.PERSON, 0.62 * scale, 0.5 * scale, 1.76 * scale, build)


def plant(painter: Painter) -> Piece:
    """A pot with a bush of leaves, or with a stem and a crown of long leaves."""
    rng = painter.rng
    height, pot_radius, pot_height = rng.uniform(0.9, 1.6), rng.uniform(0.16, 0.24), rng.uniform(0.25, 0.42)
    pot, soil, leaf = painter.any(tile=(0.2, 0.6), usual_for=Label.PLANT), painter.plain(), painter.foliage()
    shades = (leaf, painter.darker(leaf, 0.75), painter.darker(leaf, 0.55))
    spread = rng.uniform(0.3, 0.45)
    is_palm = rng.random() < 0.4
    leaves = []
    for number in range(26 if is_palm else 34):
        azimuth = number * 2.4 + rng.uniform(-0.4, 0.4)
        rise = rng.uniform(-0.3, 1.2) if is_palm else rng.uniform(-0.2, 1.0)
        leaves.append((azimuth, rise, rng.uniform(0.8, 1.15), int(rng.integers(3)), (number + 0.5) / 34))

    def build(part: Part) -> None:
        part.frustum((0, 0, 0), (0, 0, pot_height), 0.7 * pot_radius, pot_radius, pot)
        part.frustum((0, 0, 0.86 * pot_height), (0, 0, pot_height), 1.1 * pot_radius, 1.12 * pot_radius, pot)
        part.frustum((0, 0, pot_height), (0, 0, pot_height + 0.005), pot_radius, pot_radius, soil)
        crown = height - spread if is_palm else height - 0.2
        part.frustum((0, 0, pot_height), (0, 0, crown), 0.03, 0.022, shades[2])
        for azimuth, rise, size, shade, order in leaves:
            length = spread * size
            start = crown if is_palm else pot_height + 0.08 + order * (crown - pot_height)
            lean = turn_about("z", azimuth) @ turn_about("y", -rise)
            reach = length * (0.55 if is_palm else 0.6)
            middle = lean @ (reach, 0.0, 0.0)
            radii = (0.55 * length, 0.055, 0.012) if is_palm else (0.45 * length, 0.26 * length, 0.014)
            part.ellipsoid((middle[0], middle[1], middle[2] + start), radii, shades[shade], lean)

    return Piece(Label.PLANT, 1.5 * spread, 1.5 * spread, height, build)


def box(painter: Painter) -> Piece:
    """A taped box with a sticker, closed or with its flaps open."""
    rng = painter.rng
    width, depth, height = rng.uniform(0.38, 0.7), rng.uniform(0.36, 0.6), rng.uniform(0.3, 0.6)
    board, tape, sticker = (
        painter.any(plain=0.6, usual_for=Label.BOX),
        painter.plain(),
        painter.any(tile=(0.1, 0.2), plain=0.2),
    )
    inside = painter.darker(board, 0.35)
    is_open, angle = rng.random() < 0.4, rng.uniform(0.5, 1.1)
    sticker_x = rng.uniform(-0.2, 0.2) * width

    def build(part: Part) -> None:
        part.box((0, 0, 0.5 * height), (width, depth, height), board)
        for side in (-1, 1):
            part.box((sticker_x, side * 0.5 * depth, 0.4 * height), (0.35 * width, 0.006, 0.3 * height), sticker)
            part.box((0, side * 0.5 * depth, 0.86 * height), (0.07, 0.012, 0.28 * height), tape)
        if not is_open:
            part.box((0, 0, height), (0.07, depth + 0.012, 0.012), tape)
            return
        part.box((0, 0, height), (width - 0.03, depth - 0.03, 0.01), inside)
        flap = 0.45 * depth
        out, up = 0.5 * flap * math.cos(angle), 0.5 * flap * math.sin(angle)
        for side in (-1, 1):
            part.box(
                (0, side * (0.5 * depth + out), height + up), (width, flap, 0.014), board, turn_about("x", side * angle)
            )
            part.box(
                (side * (0.5 * width + out), 0, height + up),
                (flap, depth, 0.014),
                board,
                turn_about("y", -side * angle),
            )

    return Piece(Label.BOX, width, depth, height, build)
