"""Lamps for tables and floors; an arm that reaches out does so towards -z."""

import numpy as np

from im2mesh.synthetic.categories.draws import (
    LAMPSHADES, METALS, PAINTS, WHITE, chance, choose, colour, two_colours, wood,
)
from im2mesh.synthetic.shapes import (
    box, mix, ramp, revolve, rod, smooth, sphere, stripes, tube,
)

X, Y, Z = np.eye(3)


def lamp(rng):
    kind = choose(rng, table=0.4, floor=0.2, desk=0.16, arc=0.12, mushroom=0.12)
    return {"table": _table, "floor": _floor, "desk": _desk, "arc": _arc, "mushroom": _mushroom}[
        kind
    ](rng)


# ---------------------------------------------------------------- shades


def _shade(rng, radius, tall):
    """A shade around the origin, open below: the lower half of the wall shows its inside."""
    form = choose(rng, drum=0.22, cone=0.28, empire=0.16, dome=0.14, pyramid=0.1, globe=0.1)
    if form == "globe":
        return sphere(max(radius, tall / 2) * 0.8, 48).painted(_cloth(rng))
    t = np.linspace(0, 1, 25)
    top = {
        "drum": rng.uniform(0.9, 1), "cone": rng.uniform(0.3, 0.65),
        "empire": rng.uniform(0.35, 0.6), "dome": 0.12, "pyramid": rng.uniform(0.35, 0.7),
    }[form]
    curve = {"empire": 1 - (1 - t) ** 2.2, "dome": 1 - np.sqrt(1 - t**2)}.get(form, t)
    wall = np.stack([radius * (1 - (1 - top) * curve), tall * (t - 0.5)], 1)
    n = 4 if form == "pyramid" else 64
    return _shell(wall, n).turned("y", 45).painted(_cloth(rng))


def _shell(wall, n=64):
    """Hollow body of revolution, open below, closed above; wall (K, 2) is its outside, upwards."""
    tangent = np.gradient(wall, axis=0)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    inner = wall - 0.034 / np.cos(np.pi / n) * normal  # n flat sides are that much nearer
    low, high = wall[[0, -1], 1]
    inner = inner[(inner[:, 0] > 0.02) & (inner[:, 1] >= low) & (inner[:, 1] < high - 0.035)]
    return revolve([(0, high), *wall[::-1], *inner, (0, inner[-1, 1])], n)


def _cloth(rng):
    one, two = two_colours(rng, LAMPSHADES)
    style = choose(rng, plain=0.5, stripes=0.2, fade=0.3)
    if style == "stripes":
        return mix(one, two, stripes(Y, rng.uniform(0.07, 0.12), 0.4, rng.random()))
    return mix(one, two, ramp(Y, -0.15, 0.15)) if style == "fade" else one


def _base_paint(rng):
    return colour(rng, METALS + PAINTS) if chance(rng, 0.75) else wood(rng, X)


def _foot(rng, radius):
    """A plate, dome or block to stand on, and its height."""
    style = choose(rng, plate=0.45, dome=0.35, block=0.2)
    if style == "block":
        return box(1.7 * radius, 0.06, 1.7 * radius, 0.015, 0.012).moved(y=0.03)
    angle = np.radians(np.linspace(0, 90, 12))
    tall = 0.02 if style == "plate" else rng.uniform(0.05, 0.1)
    rim = [(radius * np.cos(a), 0.02 + tall * np.sin(a)) for a in angle]
    return revolve([(0, 0), (radius, 0), *rim], 48)


# ---------------------------------------------------------------- kinds


def _table(rng):
    """A turned body below a shade."""
    paint, accent = _base_paint(rng), colour(rng, METALS)
    foot, tall = rng.uniform(0.1, 0.18), rng.uniform(0.3, 0.5)
    belly, neck = rng.uniform(0.05, 0.19), rng.uniform(0.02, 0.032)
    style = choose(rng, vase=0.35, column=0.2, balls=0.25, block=0.2)
    t = np.linspace(0, 1, 41)
    if style == "vase":
        at = rng.uniform(0.6, 1.8)
        radius = neck + belly * np.sin(np.pi * t**at)
        body = [revolve([(0, 0.03), *np.stack([radius, 0.03 + tall * t], 1), (0, 0.03 + tall)], 64)]
    elif style == "column":
        radius = neck + 0.6 * belly * (1 - t) ** rng.uniform(0.5, 3)
        body = [revolve([(0, 0.03), *np.stack([radius, 0.03 + tall * t], 1), (0, 0.03 + tall)], 64)]
    elif style == "balls":
        n = rng.integers(2, 5)
        sizes = tall / n / 2 * np.linspace(rng.uniform(1, 1.3), 0.9, n)
        y = 0.03 + np.cumsum(2 * sizes) - sizes
        body = [sphere(1.04 * s, 40).moved(y=at) for s, at in zip(sizes, y)]
        tall = y[-1] + sizes[-1]
    else:
        side = max(belly, 0.07)
        body = [box(1.8 * side, 0.85 * tall, 1.8 * side, 0.02, 0.02).moved(y=0.03 + 0.43 * tall)]
    bands = mix(paint, accent, stripes(Y, rng.uniform(0.1, 0.2), 0.3, rng.random()))
    body = [part.painted(bands if chance(rng, 0.3) else paint) for part in body]
    shade_tall = rng.uniform(0.2, 0.34)
    at = tall + 0.02 + shade_tall / 2 + rng.uniform(0.0, 0.06)
    return [
        _foot(rng, foot).painted(accent), *body,
        rod((0, 0.02, 0), (0, at, 0), 0.019).painted(accent),
        _shade(rng, rng.uniform(0.17, 0.3), shade_tall).moved(y=at),
    ]


def _floor(rng):
    paint = _base_paint(rng)
    shade_tall, shade = rng.uniform(0.14, 0.24), rng.uniform(0.11, 0.2)
    at = 0.9 - shade_tall / 2
    pole = rod((0, 0.02, 0), (0, at, 0), 0.019)
    if chance(rng, 0.45):
        hub, reach = rng.uniform(0.4, 0.68), rng.uniform(0.16, 0.25)
        pole = rod((0, hub - 0.03, 0), (0, at, 0), 0.019)
        legs = [rod((0, hub, 0.01), (0, 0, reach), [[0.021], [0.018]]) for _ in range(3)]
        stand = [leg.turned("y", 60 + 120 * i) for i, leg in enumerate(legs)]
        stand.append(sphere(0.035, 24).moved(y=hub))
    else:
        stand = [_foot(rng, rng.uniform(0.11, 0.17))]
    lamps = [_shade(rng, shade, shade_tall).moved(y=at)]
    if chance(rng, 0.2):  # a little table on the way up
        stand.append(revolve([(0, -0.018), (0.15, -0.018), (0.15, 0.018), (0, 0.018)]).moved(y=0.4))
    return [*(part.painted(paint) for part in [*stand, pole]), *lamps]


def _reflector(rng, radius):
    """A bell that shines downwards, its top at the origin."""
    length, neck = rng.uniform(0.14, 0.2), rng.uniform(0.03, 0.05)
    t = np.linspace(1, 0, 17)
    bell = neck + (radius - neck) * t ** rng.uniform(0.5, 1.2)
    return _shell(np.stack([bell, 0.02 - length * t], 1), 48)


def _desk(rng):
    """Two arms with joints."""
    paint, accent = two_colours(rng, PAINTS)
    lower, upper = rng.uniform(0.28, 0.45), rng.uniform(0.26, 0.42)
    lean, drop = np.radians(rng.uniform(0, 40)), np.radians(rng.uniform(-10, 60))
    elbow = np.array([0, 0.05 + lower * np.cos(lean), 0.5 * lower * np.sin(lean)])
    head = elbow + upper * np.array([0, np.sin(drop), -np.cos(drop)])
    head[1] = max(head[1], 0.3)
    foot = np.array([0, 0.03, -0.5 * lower * np.sin(lean)])
    shade = _reflector(rng, rng.uniform(0.08, 0.14)).turned("x", rng.uniform(-5, 35))
    return [
        _foot(rng, rng.uniform(0.11, 0.17)).moved(z=foot[2]).painted(accent),
        rod(foot, elbow, 0.02).painted(paint),
        rod(elbow, head, 0.02).painted(paint),
        sphere(0.034, 24).moved(*elbow).painted(accent),
        sphere(0.034, 24).moved(*head).painted(accent),
        shade.moved(*head).painted(paint),
    ]


def _arc(rng):
    """One arm bent from the foot over to the shade that hangs at its end."""
    paint = colour(rng, METALS)
    tall, reach = rng.uniform(0.7, 0.9), rng.uniform(0.3, 0.6)
    z = reach / 2
    end = rng.uniform(0.72, 0.9) * tall
    path = smooth([
        (0, 0.03, z), (0, 0.6 * tall, z + 0.02), (0, tall, z - 0.45 * reach),
        (0, end, z - reach),
    ], 41)
    if chance(rng, 0.3):
        shade = sphere(rng.uniform(0.09, 0.14), 40).moved(y=-0.06).painted(_cloth(rng))
    else:
        shade = _reflector(rng, rng.uniform(0.11, 0.18)).painted(colour(rng, LAMPSHADES + PAINTS))
    return [
        _foot(rng, rng.uniform(0.1, 0.16)).moved(z=z).painted(paint),
        tube(path, 0.02, up=X).painted(paint),
        shade.moved(y=end, z=z - reach),
    ]


def _mushroom(rng):
    """A dome upon a stem, both wide."""
    paint, cap = two_colours(rng, PAINTS)
    tall, stem, radius = rng.uniform(0.36, 0.65), rng.uniform(0.05, 0.13), rng.uniform(0.22, 0.38)
    flare = rng.uniform(0.02, 0.12)
    t = np.linspace(0, 1, 21)
    side = np.stack([stem + flare * (1 - t) ** 3, tall * t], 1)
    rise, power = radius * rng.uniform(0.5, 1.0), rng.uniform(1.6, 3.0)
    angle = np.linspace(0, np.pi / 2, 21)
    dome = np.stack([radius * np.cos(angle) ** (2 / power), rise * np.sin(angle) ** (2 / power)], 1)
    dome = revolve([(0, 0), (radius, 0), *dome], 64).moved(y=tall - 0.1 * rise)
    return [
        revolve([(0, 0), *side, (0, tall)], 48).painted(paint),
        dome.painted(mix(cap, WHITE, ramp(-Y, -0.04, 0.0)) if chance(rng, 0.3) else cap),
    ]
