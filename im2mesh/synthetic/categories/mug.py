"""Mugs: the handle points to +x."""

import numpy as np

from im2mesh.synthetic.categories.draws import (
    CREAM, PAINTS, WHITE, chance, choose, colour, two_colours,
)
from im2mesh.synthetic.shapes import (
    band, mix, ramp, revolve, smooth, spot, stripes, tube,
)

Y, Z = np.eye(3)[1:]
DRINKS = ("#4a2c1a", "#8a5a33", "#c98a3c")


def mug(rng):
    tall, radius = rng.uniform(0.42, 0.95), rng.uniform(0.22, 0.36)
    y, outer = _side(rng, tall, radius)
    wall = rng.uniform(0.042, 0.06)
    paint, lining = _glaze(rng, tall, radius)

    def is_inside(points):
        distance = np.hypot(points[:, 0], points[:, 2])
        return (distance < np.interp(points[:, 1], y, outer) - 0.5 * wall).astype(float)

    floor = np.searchsorted(y, y[0] + 0.08)
    inner = np.stack([outer - wall, y], 1)[floor:][::-1]
    lip = np.radians(np.linspace(0, 180, 9))[1:-1]
    lip = np.stack([outer[-1] - wall / 2 * (1 - np.cos(lip)), tall + wall / 2 * np.sin(lip)], 1)
    outside = np.stack([outer, y], 1)
    body = revolve([(0, 0), *outside, *lip, *inner, (0, y[floor])], 72)
    parts = [body.painted(mix(paint, lining, is_inside))]
    if chance(rng, 0.5):
        level = rng.uniform(0.55, 0.85) * tall
        rim = np.interp(level, y, outer) - wall / 2
        pool = revolve([(0, y[floor]), (0.3 * rim, y[floor]), (rim, level), (0, level)], 48)
        parts.append(pool.painted(colour(rng, DRINKS)))
    handle = paint if chance(rng, 0.6) else colour(rng, PAINTS)
    return parts + [part.painted(handle) for part in _handles(rng, y, outer)]


def _side(rng, tall, radius):
    """Heights and radii of the outside, upwards from the floor."""
    t = np.linspace(0, 1, 41)
    form = choose(rng, straight=0.2, taper=0.2, barrel=0.2, bowl=0.15, waist=0.15, stein=0.1)
    amount = rng.uniform(0.12, 0.38)
    shape = {
        "straight": 1 + 0 * t,
        "taper": 1 - amount * (1 - t),
        "barrel": 1 - amount + 1.1 * amount * np.sin(np.pi * t) ** 0.8,
        "bowl": 1 - 0.6 * (1 - t) ** rng.uniform(2, 4),
        "waist": 1 - 0.8 * amount * np.sin(np.pi * t) ** 1.5,
        "stein": 1 - 0.6 * amount * t,
    }[form]
    outer = radius * shape
    rounding = rng.uniform(0.02, 0.08)  # of the lower edge
    outer = outer - rounding * np.clip(1 - tall * t / rounding, 0, 1) ** 2
    y = tall * t
    if chance(rng, 0.25):  # rings to hold on to
        outer = outer + 0.012 * np.sin(2 * np.pi * rng.integers(3, 6) * t) * np.sin(np.pi * t)
    if form == "bowl" and chance(rng, 0.5):  # on a foot
        foot = np.linspace(0, 0.05, 4)[:-1]
        return np.r_[foot, y + 0.05], np.r_[0.55 * radius - 0.2 * foot, outer]
    return y, outer


def _handles(rng, y, outer):
    tall = y[-1]
    low, high = rng.uniform(0.12, 0.3) * tall, rng.uniform(0.7, 0.9) * tall
    reach = rng.uniform(0.16, 0.28)
    thick = rng.uniform(0.026, 0.042), rng.uniform(0.022, 0.034)
    x0, x1 = np.interp([low, high], y, outer) - 0.02
    out = max(x0, x1, np.interp((low + high) / 2, y, outer)) + reach
    form = choose(rng, round=0.35, ear=0.25, square=0.2, corner=0.2)
    middle = (low + high) / 2
    path = {
        "round": [
            (x1, high), (out - 0.25 * reach, high), (out, middle), (out - 0.25 * reach, low),
            (x0, low),
        ],
        "ear": [
            (x1, high), (out - 0.3 * reach, high + 0.04), (out, middle + 0.1 * tall),
            (out - 0.45 * reach, middle - 0.2 * tall), (x0, low),
        ],
        "square": [(x1, high), (out, high), (out, low), (x0, low)],
        "corner": [(x1, high), (out, high - 0.02), (x0, low)],
    }[form]
    path = np.insert(np.asarray(path), 2, 0, axis=1)
    if form in ("round", "ear"):
        parts = [tube(smooth(path, 41), thick, up=Z)]
    else:
        path = np.concatenate([  # rounded corners, by Bezier's parabolas
            path[:1],
            *(_corner(a, b, c, 0.3) for a, b, c in zip(path, path[1:], path[2:])),
            path[-1:],
        ])
        parts = [tube(path, thick, up=Z, power=rng.choice([2.0, 4.0]))]
    if chance(rng, 0.08):
        parts += [part.turned("y", 180) for part in parts]
    return parts


def _corner(a, b, c, share):
    start, end = b + share * (a - b), b + share * (c - b)
    t = np.linspace(0, 1, 9)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * b + t**2 * end


def _glaze(rng, tall, radius):
    """Colours of the outside and of the inside."""
    one, two = two_colours(rng, PAINTS)
    lining = rng.choice([WHITE, CREAM, one, two])
    style = choose(rng, plain=0.25, bands=0.2, stripes=0.12, dip=0.15, fade=0.13, dots=0.15)
    if style == "bands":
        at = rng.uniform(0.2, 0.7) * tall
        return mix(one, two, band(Y, at, at + rng.uniform(0.08, 0.25))), lining
    if style == "stripes":
        return mix(one, two, stripes(Y, rng.uniform(0.1, 0.2), 0.5, rng.random())), lining
    if style == "dip":
        at = rng.uniform(0.3, 0.7) * tall
        return mix(one, rng.choice([WHITE, CREAM, two]), ramp(Y, at, at + 0.006)), lining
    if style == "fade":
        return mix(one, two, ramp(Y, 0, tall)), lining
    if style == "dots":
        paint = one
        for angle in np.radians(np.arange(0, 360, rng.choice([60, 72, 90]))):
            for level in (0.3, 0.65):
                turn = angle + level
                at = radius * np.cos(turn), level * tall, radius * np.sin(turn)
                paint = mix(paint, two, spot(at, 0.3 * radius))
        return paint, lining
    return one, lining
