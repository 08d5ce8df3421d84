"""Chairs: the sitter looks towards -z."""

from dataclasses import dataclass

import numpy as np

from im2mesh.synthetic.categories.draws import (
    FABRICS, METALS, PAINTS, chance, choose, colour, wood,
)
from im2mesh.synthetic.shapes import (
    box, prism, revolve, rod, rounded_rectangle, smooth, sphere, torus, tube,
)

X, Y, Z = np.eye(3)


@dataclass(frozen=True)
class Seat:
    """Edge lengths of a seat, height of its upper side, radius of its corners."""

    width: float
    depth: float
    height: float
    thickness: float
    corner: float

    @property
    def below(self):
        return self.height - self.thickness

    @property
    def back(self):
        """z of the place where a back rest stands."""
        return self.depth / 2 - 0.03


def chair(rng):
    kind = choose(rng, side=0.5, tub=0.15, armchair=0.17, stool=0.18)
    if kind == "armchair":
        return _armchair(rng)
    frame = wood(rng, X) if chance(rng, 0.6) else colour(rng, METALS + PAINTS[:5])
    cloth = colour(rng, FABRICS)
    if kind == "stool":
        seat = _seat(rng, width=(0.32, 0.42), height=(0.42, 0.72), corner=0.9)
        legs = choose(rng, three=0.25, four=0.45, pedestal=0.3)
        parts = [*_board(rng, seat, cloth, frame), *_legs(rng, seat, legs, frame)]
        if seat.height > 0.55 and legs != "pedestal":
            parts.append(_foot_ring(rng, seat).painted(frame))
        return parts
    seat = _seat(rng, width=(0.4, 0.58), height=(0.3, 0.46), corner=0.6)
    legs = choose(rng, four=0.44, pedestal=0.12, star=0.16, sled=0.14, sides=0.07, rocker=0.07)
    parts = [*_board(rng, seat, cloth, frame), *_legs(rng, seat, legs, frame)]
    if kind == "tub":
        return [*parts, _tub(rng, seat).painted(cloth)]
    height = rng.uniform(0.28, 0.6)
    lean = rng.uniform(2, 16)
    back = choose(rng, panel=0.24, curved=0.22, slats=0.2, ladder=0.2, loop=0.14)
    for part in _back(rng, seat, back, height, frame, cloth):
        parts.append(part.turned("x", lean).moved(y=seat.height - 0.02, z=seat.back))
    if chance(rng, 0.35):
        parts += _arms(rng, seat, frame)
    return parts


# ---------------------------------------------------------------- seats


def _seat(rng, width, height, corner):
    width = rng.uniform(*width)
    depth = width * rng.uniform(0.85, 1.05)
    corner = rng.uniform(0.24, corner) * min(width, depth) / 2
    return Seat(width, depth, rng.uniform(*height), rng.uniform(0.04, 0.1), corner)


def _board(rng, seat, cloth, frame):
    outline = rounded_rectangle(seat.width, seat.depth, seat.corner)
    outline[:, 0] *= 1 - rng.uniform(0, 0.18) * (outline[:, 1] / seat.depth + 0.5)
    soft = seat.thickness > 0.06
    board = prism(outline, seat.thickness, 0.35 * seat.thickness if soft else 0.012)
    return [board.moved(y=seat.height - seat.thickness / 2).painted(cloth if soft else frame)]


# ---------------------------------------------------------------- legs


def _legs(rng, seat, kind, paint):
    make = {
        "pedestal": _pedestal, "star": _star, "sled": _sled, "sides": _sides, "rocker": _rocker,
    }
    parts = make[kind](rng, seat) if kind in make else _straight_legs(rng, seat, kind)
    return [part.painted(paint) for part in parts]


def _straight_legs(rng, seat, kind):
    inset = 0.035 + 0.3 * seat.corner
    splay = rng.uniform(0, 0.09)
    radius = np.array([[rng.uniform(0.02, 0.032)], [0.018]])
    power = 8.0 if chance(rng, 0.4) else 2.0
    a, b = seat.width / 2 - inset, seat.depth / 2 - inset
    corners = [(-a, -b), (a, -b), (a, b), (-a, b)]
    if kind == "three":
        corners = [(0.8 * a * np.sin(t), 0.8 * a * np.cos(t)) for t in np.radians([0, 120, 240])]
    tops = [np.array([x, seat.below + 0.01, z]) for x, z in corners]
    feet = []
    for x, z in corners:
        outward = np.array([x, z]) / np.hypot(x, z)
        feet.append(np.array([x + splay * outward[0], 0, z + splay * outward[1]]))
    parts = [rod(top, foot, radius, power) for top, foot in zip(tops, feet)]
    if kind == "four" and chance(rng, 0.35):
        share = rng.uniform(0.35, 0.7)
        joints = [foot + share * (top - foot) for top, foot in zip(tops, feet)]
        pairs = [(0, 3), (1, 2)] + ([(0, 1), (2, 3)] if chance(rng, 0.5) else [])
        parts += [rod(joints[i], joints[j], 0.017) for i, j in pairs]
    return parts


def _pedestal(rng, seat):
    foot, column = rng.uniform(0.34, 0.48) * seat.width + 0.03, rng.uniform(0.022, 0.05)
    flare = rng.uniform(0.03, 0.14)
    t = np.linspace(0, 1, 12)
    skirt = np.stack([foot + (column - foot) * t**0.5, 0.035 + flare * t**2], 1)
    return [revolve([(0, 0), (foot, 0), *skirt, (column, seat.below + 0.01)], 48)]


def _star(rng, seat):
    n_arms, reach = rng.integers(4, 6), rng.uniform(0.24, 0.3)
    parts = [
        rod((0, 0.06, 0), (0, seat.below + 0.01, 0), [[0.032], [0.025]]),
        revolve([(0, 0.05), (0.05, 0.05), (0.05, 0.11), (0, 0.13)], 32),
    ]
    for angle in np.arange(n_arms) * 360 / n_arms:
        arm = rod((0, 0.09, 0), (0, 0.07, -reach), [[0.026, 0.026], [0.02, 0.018]], 4.0)
        wheel = revolve([(0, -0.018), (0.035, -0.018), (0.035, 0.018), (0, 0.018)], 24)
        wheel = wheel.turned("z", 90).moved(y=0.035, z=-reach)
        parts += [arm.turned("y", angle), wheel.turned("y", angle)]
    return parts


def _sled(rng, seat):
    half, front, back = seat.width / 2 - 0.035, -seat.depth / 2 + 0.03, seat.depth / 2 - 0.04
    top = seat.below + 0.01
    cantilever = chance(rng, 0.4)
    parts = []
    for x in (-half, half):
        corners = [(x, top, front), (x, 0.02, front - 0.02), (x, 0.02, back + 0.03)]
        if not cantilever:
            corners.append((x, top, back))
        parts += [rod(a, b, 0.02) for a, b in zip(corners, corners[1:])]
        parts += [sphere(0.02, 24).moved(*corner) for corner in corners[1:-1]]
    parts.append(rod((-half, 0.02, back + 0.02), (half, 0.02, back + 0.02), 0.02))
    parts.append(rod((-half, top - 0.01, front), (half, top - 0.01, front), 0.02))
    return parts


def _sides(rng, seat):
    parts = []
    for side in (-1, 1):
        board = box(0.04, seat.below + 0.01, 0.94 * seat.depth, 0.01, 0.008)
        parts.append(board.moved(side * (seat.width / 2 - 0.04), (seat.below + 0.01) / 2))
    rail = box(seat.width - 0.08, 0.06, 0.035, 0.008, 0.008)
    return [*parts, rail.moved(y=0.6 * seat.below)]


def _rocker(rng, seat):
    parts = _straight_legs(rng, seat, "rocker")
    reach, rise = 0.66 * seat.depth + 0.06, 0.09
    z = np.linspace(-1, 1, 25)
    half = seat.width / 2 - 0.03
    for x in (-half, half):
        path = np.stack([np.full(25, x), rise * z**2 - 0.02, reach * z], 1)
        parts.append(tube(path, (0.022, 0.024), power=4.0))
    return parts


def _foot_ring(rng, seat):
    inset = 0.035 + 0.3 * seat.corner
    ring = torus(seat.width / 2 - inset + 0.03, 0.018).turned("x", 90)
    return ring.moved(y=rng.uniform(0.3, 0.45) * seat.height)


# ---------------------------------------------------------------- backs and arms
# A back stands on the plane y = 0 with its middle at x = 0, upright.


def _back(rng, seat, kind, height, frame, cloth):
    half = 0.47 * seat.width - 0.02
    make = {
        "panel": _panel, "curved": _curved, "loop": _loop, "slats": _slats, "ladder": _ladder,
    }[kind]
    soft, hard = make(rng, half, height)
    return [*(part.painted(cloth) for part in soft), *(part.painted(frame) for part in hard)]


def _panel(rng, half, height):
    gap = rng.choice([0, 0.12])
    tall, width = height - gap, 2 * half + 0.04
    outline = rounded_rectangle(width, tall, rng.uniform(0.03, 0.48) * min(width, tall))
    panel = prism(outline, rng.uniform(0.04, 0.09), 0.015).turned("x", 90)
    posts = [rod((x, 0, 0), (x, gap + 0.1, 0), 0.02) for x in (-half / 2, half / 2)]
    return [panel.moved(y=gap + tall / 2)], posts if gap else []


def _curved(rng, half, height):
    gap, sag = rng.choice([0, 0.1, 0.16]), rng.uniform(0.02, 0.09)
    posts = [rod((x, 0, 0.01), (x, gap + 0.05, 0.01), 0.02) for x in (-half / 2, half / 2)]
    return [_rail(half, (height + gap) / 2, (height - gap) / 2, 0.02, sag)], posts if gap else []


def _loop(rng, half, height):
    shoulder = height * rng.uniform(0.5, 0.8)
    path = smooth([
        (-half, 0, 0), (-half - 0.02, shoulder, 0), (0, height, 0), (half + 0.02, shoulder, 0),
        (half, 0, 0),
    ], 41)
    n = rng.integers(1, 4)
    at, thick = ([0], 0.05) if n == 1 else (np.linspace(-0.5, 0.5, n) * half, 0.018)
    bars = [rod((x, 0, 0), (x, 0.94 * height, 0), (thick, 0.018), 4.0) for x in at]
    return [], [tube(path, 0.022, up=Z), *bars]


def _slats(rng, half, height):
    n = rng.integers(2, 6)
    thick = min(rng.uniform(0.017, 0.05), 0.55 * half / n)
    bars = [
        rod((x, 0, 0), (x, height - 0.03, 0), (thick, 0.017), 4.0)
        for x in np.linspace(-half, half, n + 2)[1:-1]
    ]
    top = _rail(half, height - 0.03, rng.uniform(0.025, 0.06), 0.02)
    return [], [top, *bars, *_posts(half, height)]


def _ladder(rng, half, height):
    n = rng.integers(2, 5)
    tall = rng.uniform(0.3, 0.7) * height / n / 2
    y = height - tall - np.arange(n) * height / (n + 0.4)
    return [], [*(_rail(half, at, tall, 0.018, 0.03) for at in y), *_posts(half, height)]


def _posts(half, height):
    return [rod((x, -0.02, 0), (x, height, 0), 0.022) for x in (-half, half)]


def _rail(half, y, tall, thick, sag=0.0):
    """Horizontal board, bowed backwards in its middle; half its width, height and thickness."""
    x = np.linspace(-1, 1, 21)
    path = np.stack([half * x, np.full(21, y), sag * (1 - x**2)], 1)
    return tube(path, (thick, tall), power=5.0)


def _tub(rng, seat):
    """Back and arms in one, around the seat."""
    angle = np.radians(np.linspace(-1, 1, 41) * rng.uniform(95, 135))
    back, front = rng.uniform(0.26, 0.42), rng.uniform(0.1, 0.22)
    top = front + (back - front) * (0.5 + 0.5 * np.cos(angle)) ** rng.uniform(0.8, 2.5)
    a, b = seat.width / 2 - 0.01, seat.depth / 2 - 0.01
    y = seat.below + top / 2
    path = np.stack([a * np.sin(angle), y, b * np.cos(angle)], 1)
    thickness = rng.uniform(0.022, 0.04)
    return tube(path, np.stack([np.full(41, thickness), top / 2], 1), power=4.0)


def _arms(rng, seat, paint):
    height, half = rng.uniform(0.16, 0.24), seat.width / 2 - 0.015
    y, front = seat.height + height, -rng.uniform(0.25, 0.45) * seat.depth
    back = seat.back + 0.17 * height
    looped = chance(rng, 0.4)
    parts = []
    for x in (-half, half):
        if looped:
            foot, bend = (x, seat.below, front + 0.06), (x, y - 0.04, front)
            parts.append(tube(smooth([foot, bend, (x, y, 0), (x, y, back)]), 0.022, up=X))
        else:
            parts.append(rod((x, seat.below, front + 0.03), (x, y, front + 0.03), 0.02))
            parts.append(rod((x, y, front - 0.02), (x, y, back), (0.032, 0.02), 4.0))
    return [part.painted(paint) for part in parts]


# ---------------------------------------------------------------- all of upholstery


def _armchair(rng):
    cloth, legs = colour(rng, FABRICS), wood(rng, X)
    cushion = colour(rng, FABRICS) if chance(rng, 0.5) else cloth
    width, depth = rng.uniform(0.62, 1.0), rng.uniform(0.55, 0.68)
    foot, seat, back = rng.uniform(0.05, 0.14), rng.uniform(0.28, 0.36), rng.uniform(0.55, 0.9)
    arm, arm_width = seat + rng.uniform(0.08, 0.2), rng.uniform(0.08, 0.15)
    soft = rng.uniform(0.02, 0.035)

    def block(x, y, z, low, at_x=0.0, at_z=0.0):
        return box(x, y, z, soft + 0.005, soft).moved(at_x, low + y / 2, at_z).painted(cloth)

    parts = [block(width, seat - 0.06 - foot, depth, foot)]
    rest = block(width - 0.02, back - foot - 0.1, 0.15, 0)
    parts.append(rest.turned("x", rng.uniform(2, 10)).moved(y=foot + 0.08, z=depth / 2 - 0.08))
    n_seats, with_arms = 2 if width > 0.85 else 1, chance(rng, 0.8)
    inner = width - 2 * arm_width if with_arms else width - 0.02
    for i in range(n_seats):
        x = inner * ((i + 0.5) / n_seats - 0.5)
        pad = box(inner / n_seats - 0.004, 0.11, depth - 0.1, 0.045, 0.04)
        parts.append(pad.moved(x, seat - 0.05, -0.05).painted(cushion))
    if with_arms:
        rolled = chance(rng, 0.4)
        for side in (-1, 1):
            x = side * (width / 2 - arm_width / 2)
            parts.append(block(arm_width, arm - foot, depth, foot, x))
            if rolled:
                roll = rod((x, arm, -depth / 2 - 0.01), (x, arm, depth / 2), arm_width * 0.62)
                parts.append(roll.painted(cloth))
    for x in (-1, 1):
        for z in (-1, 1):
            at = np.array([x * (width / 2 - 0.06), 0, z * (depth / 2 - 0.06)])
            parts.append(rod(at, at + [0, foot + 0.03, 0], [[0.02], [0.03]]).painted(legs))
    return parts
