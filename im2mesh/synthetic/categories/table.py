"""Tables and desks: the drawers of a desk open towards -z."""

import numpy as np

from im2mesh.synthetic.categories.draws import (
    METALS, PAINTS, SOOT, chance, choose, colour, wood,
)
from im2mesh.synthetic.shapes import (
    both, box, mix, prism, ramp, revolve, rod, rounded_rectangle, smooth, stripes, superellipse,
    tube,
)

X, Y, Z = np.eye(3)


def table(rng):
    shape = choose(rng, rectangle=0.6, ellipse=0.25, polygon=0.15)
    long, wide, height = _sizes(rng, shape)
    thickness = rng.uniform(0.035, 0.075)
    paint = wood(rng, Z) if chance(rng, 0.65) else colour(rng, PAINTS)
    under = choose(rng, same=0.5, wood=0.2, metal=0.3)
    frame = {"same": paint, "wood": wood(rng, X), "metal": colour(rng, METALS)}[under]
    top = _top(rng, shape, long, wide, thickness).moved(y=height - thickness / 2)

    if shape == "rectangle":
        kind = choose(rng, four=0.4, pedestal=0.12, trestle=0.15, sides=0.13, desk=0.12, arch=0.08)
    else:
        kind = choose(rng, four=0.4, pedestal=0.5, trestle=0.1)
        long, wide = 0.75 * long, 0.75 * wide  # the legs stay below a round top
    make = {
        "four": _four, "pedestal": _pedestal, "trestle": _trestle, "sides": _sides, "desk": _desk,
        "arch": _arch,
    }[kind]
    legs = make(rng, long, wide, height - thickness + 0.005)
    if kind == "desk":
        frame = _with_drawers(rng, frame, wide, height)
    return [top.painted(paint), *(part.painted(frame) for part in legs)]


def _sizes(rng, shape):
    """Length (along x), width (along z) and height."""
    kind = choose(rng, coffee=0.35, dining=0.45, bar=0.2)
    long = rng.uniform(0.7, 0.95)
    wide = long * (rng.uniform(0.45, 0.95) if shape == "rectangle" else rng.uniform(0.75, 1))
    if kind == "coffee":
        return long, wide, rng.uniform(0.26, 0.4)
    if kind == "dining":
        return long, wide, rng.uniform(0.5, 0.66)
    return 0.65 * long, 0.65 * max(wide, 0.6 * long), rng.uniform(0.75, 0.92)


def _top(rng, shape, long, wide, thickness):
    bevel = rng.choice([0.006, 0.45 * thickness])
    if shape == "rectangle":
        corner = rng.choice([0.015, 0.06, 0.2]) * wide
        outline = rounded_rectangle(long, wide, max(corner, bevel + 0.004))
    elif shape == "ellipse":
        outline = superellipse(long / 2, wide / 2, rng.choice([2.0, 2.6]), 64)
    else:
        n = rng.choice([6, 8])
        angle = 2 * np.pi * (np.arange(n) + 0.5) / n
        outline = np.stack([long / 2 * np.cos(angle), long / 2 * np.sin(angle)], 1)
    return prism(outline, thickness, bevel)


def _four(rng, long, wide, height):
    a, b = long / 2 - 0.04, wide / 2 - 0.04
    power = 8.0 if chance(rng, 0.5) else 2.0
    top = rng.uniform(0.022, 0.045)
    foot = max(0.019, top * rng.uniform(0.5, 1))
    splay = rng.uniform(0, 0.07) if chance(rng, 0.4) else 0.0
    corners = [(-a, -b), (a, -b), (a, b), (-a, b)]
    inwards = 1 - splay / np.array([a, 1, b])  # of the upper ends
    feet = np.insert(corners, 1, 0, axis=1)
    parts = [rod(at * inwards + [0, height, 0], at, [[top], [foot]], power) for at in feet]
    extra = choose(rng, none=0.35, apron=0.25, shelf=0.2, stretchers=0.2)
    if extra == "apron" and not splay:
        tall = rng.uniform(0.06, 0.12)
        for z in (-b, b):
            parts.append(box(2 * a, tall, 0.035, 0.006, 0.006).moved(y=height - tall / 2, z=z))
        for x in (-a, a):
            parts.append(box(0.035, tall, 2 * b, 0.006, 0.006).moved(x, height - tall / 2))
    elif extra == "shelf" and not splay:
        shelf = box(2 * a + 0.03, 0.036, 2 * b + 0.03, 0.02, 0.008)
        parts.append(shelf.moved(y=rng.uniform(0.2, 0.45) * height))
    elif extra == "stretchers" and not splay:
        y = rng.uniform(0.12, 0.4) * height
        parts += [rod((x, y, -b), (x, y, b), 0.018) for x in (-a, a)]
        parts.append(rod((-a, y, 0), (a, y, 0), 0.018))
    return parts


def _pedestal(rng, long, wide, height):
    size = min(long, wide)
    slim, foot = rng.uniform(0.024, 0.06), rng.uniform(0.28, 0.4) * size
    style = choose(rng, disc=0.35, turned=0.35, cross=0.3)
    y = np.linspace(0, 1, 25)
    belly = rng.uniform(0.02, 0.07) * np.sin(np.pi * y) ** 2 * (style == "turned")
    rings = 0.014 * np.sin(rng.integers(2, 5) * np.pi * y) ** 2 * (style == "turned")
    head = rng.uniform(0.03, 0.12) * y**8
    column = np.stack([slim + belly + rings + head, height * (0.04 + 0.96 * y)], 1)
    if style == "cross":
        n, parts = rng.integers(3, 5), [revolve([(0, column[0, 1]), *column, (0, height)], 40)]
        rise = rng.uniform(0.05, 0.2)
        path = smooth([(0, rise + 0.05, 0), (0, 0.6 * rise, foot / 2), (0, 0.02, foot + 0.06)], 15)
        leg = tube(path, np.linspace((0.026, 0.034), (0.022, 0.02), 15), power=4.0)
        return parts + [leg.turned("y", 45 + 360 / n * i) for i in range(n)]
    t = np.linspace(0, 1, 9)
    base = np.stack([foot + (slim - foot) * t, 0.036 + 0.16 * height * t**3], 1)
    column = column[column[:, 1] > base[-1, 1]]
    return [revolve([(0, 0), (foot, 0), *base, *column, (0, height)], 48)]


def _trestle(rng, long, wide, height):
    """Two frames shaped like the letter X, A or I, and a beam between them."""
    form = choose(rng, x=0.4, a=0.35, i=0.25)
    at, half = (0.5 - rng.uniform(0.1, 0.2)) * long, wide / 2 - 0.05
    height = height - 0.01  # slanting ends must not come out of the top
    lines = {
        "x": [((-half, 0), (half, height)), ((half, 0), (-half, height))],
        "a": [((-half, 0), (-0.25 * half, height)), ((half, 0), (0.25 * half, height))],
        "i": [((-half, 0.025), (half, 0.025)), ((0, 0.02), (0, height))],
    }[form]
    thick = rng.uniform(0.02, 0.032)
    parts = []
    for x in (-at, at):
        for (z, y), (w, v) in lines:
            parts.append(rod((x, y, z), (x, v, w), thick, 8.0))
    y = 0.5 * height if form == "x" else rng.uniform(0.2, 0.45) * height
    parts.append(rod((-at, y, 0), (at, y, 0), 0.022, 8.0))
    if form == "a":
        reach = half * (1 - 0.75 * y / height)
        parts += [rod((x, y, -reach), (x, y, reach), 0.02, 8.0) for x in (-at, at)]
    return parts


def _sides(rng, long, wide, height):
    thick = rng.uniform(0.036, 0.08)
    at = long / 2 - thick / 2 - rng.uniform(0, 0.12) * long
    board = box(thick, height, 0.95 * wide, 0.012, 0.008)
    parts = [board.moved(x, height / 2) for x in (-at, at)]
    middle = choose(rng, none=0.3, shelf=0.4, wall=0.3)
    if middle == "shelf":
        for share in np.linspace(0, 1, rng.integers(3, 5))[1:-1]:
            shelf = box(2 * at, 0.036, 0.9 * wide, 0.01, 0.008)
            parts.append(shelf.moved(y=(0.1 + 0.8 * share) * height))
    elif middle == "wall":
        parts.append(box(2 * at, 0.7 * height, 0.04, 0.008, 0.008).moved(y=0.65 * height))
    return parts


def _desk(rng, long, wide, height):
    chest_width = rng.uniform(0.26, 0.36) * long
    low = rng.choice([0.0, 0.35]) * height + 0.03
    sides = (-1, 1) if chance(rng, 0.4) else (rng.choice([-1, 1]),)
    parts = []
    for side in sides:
        chest = box(chest_width, height - low, 0.9 * wide, 0.008, 0.008)
        parts.append(chest.moved(side * (long / 2 - chest_width / 2 - 0.02), (height + low) / 2))
    for x in (-1, 1):
        for z in (-1, 1):
            at = np.array([x * (long / 2 - 0.045), 0, z * (0.45 * wide - 0.025)])
            parts.append(rod(at, at + [0, height, 0], 0.022, 8.0))
    return parts


def _with_drawers(rng, paint, wide, height):
    """Dark lines between the drawers on the fronts."""
    lines = stripes(Y, height / rng.integers(3, 6), 0.08, 0.5)
    front = ramp(-Z, 0.44 * wide, 0.445 * wide)
    return mix(paint, SOOT, both(lines, front))


def _arch(rng, long, wide, height):
    """A strip bent into legs, as of plywood."""
    a, lean, n = long / 2 - 0.05, rng.uniform(-0.12, 0.06), 12
    bend, turn = rng.uniform(0.06, 0.2), np.radians(np.linspace(0, 90, n))
    y = height - 0.024
    knee = np.stack([a - bend * (1 - np.sin(turn)), y - bend * (1 - np.cos(turn))], 1)
    leg = np.stack([a + lean * np.linspace(0, 1, n) ** 1.5, np.linspace(y - bend, 0, n)], 1)
    side = np.insert(np.concatenate([knee, leg[1:]]), 2, 0, axis=1)
    path = np.concatenate([side[::-1] * [-1, 1, 1], side])
    return [tube(path, (0.024, rng.uniform(0.2, 0.42) * wide), up=Z, power=8.0)]
