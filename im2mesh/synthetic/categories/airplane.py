"""Airplanes: they fly towards -z. Built along x with the nose at +x."""

import numpy as np

from im2mesh.synthetic.categories.draws import (
    GLASS, METALS, PAINTS, SOOT, WHITE, chance, choose, colour, two_colours,
)
from im2mesh.synthetic.shapes import (
    band, both, loft, mix, ramp, revolve, rod, sections, stripes, superellipse,
)

X, Y, Z = np.eye(3)
THINNEST = 0.034  # a wing, at its tip


def airplane(rng):
    kind = choose(rng, airliner=0.36, propeller=0.24, fighter=0.22, glider=0.08, biplane=0.1)
    base, accent = two_colours(rng, PAINTS)
    if chance(rng, 0.45):
        base = WHITE if chance(rng, 0.7) else colour(rng, METALS)
    make = {
        "airliner": _airliner, "propeller": _propeller, "fighter": _fighter, "glider": _glider,
        "biplane": _biplane,
    }[kind]
    return [part.turned("y", 90) for part in make(rng, base, accent)]


# ---------------------------------------------------------------- parts


def _fuselage(length, radius, nose, tail, rise, tall=1.0, power=2.0):
    """nose, tail : lengths over which it narrows; rise : of the tail's end above the axis."""
    half = length / 2
    x = half * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 70))
    front = ((half - x) / nose).clip(0, 1)
    rear = ((x + half) / tail).clip(0, 1)
    r = radius * np.sqrt(1 - (1 - front) ** 2) ** 1.1
    r *= 0.3 + 0.7 * (1 - (1 - rear) ** 2) ** 0.9
    y = rise * (1 - rear) ** 2 - 0.25 * radius * (1 - front) ** 2
    return sections(x, y, tall * r, r, power)


def _wing(span, root, tip, sweep, dihedral=0.0, thickness=0.05, one_sided=False):
    """A pair of wings, or the right one alone.

    root, tip : chords; sweep : how far the tip lies behind the root; dihedral : how far above.
    """
    u = np.linspace(0, 1, 24) ** 0.8
    u = u if one_sided else np.r_[-u[:0:-1], u]
    s = np.abs(u)
    ends = np.sqrt((1 - ((s - 0.94) / 0.06).clip(0, 1) ** 2) * 0.75 + 0.25)
    chord = (root + (tip - root) * s) * ends
    thick = (thickness + (THINNEST - thickness) * s) * (0.3 * ends + 0.7)
    outline = superellipse(0.5, 0.5, 2.6, 32).T
    rings = np.broadcast_arrays(
        -sweep * s[:, None] + chord[:, None] * outline[0],
        dihedral * s[:, None] + thick[:, None] * outline[1],
        (span / 2 * u)[:, None],
    )
    return loft(np.stack(rings, -1))


def _fin(height, root, tip, sweep, thickness=0.042):
    """Standing on y = 0."""
    return _wing(2 * height, root, tip, sweep, 0.0, thickness, one_sided=True).turned("x", -90)


def _nacelle(length, radius, paint):
    t = np.linspace(0, 1, 17)
    r = radius * (0.62 + 0.38 * np.sin(np.pi * (0.15 + 0.72 * t)) ** 0.7)
    pod = revolve([(0, -length / 2), *np.stack([r, length * (t - 0.5)], 1), (0, length / 2)], 32)
    intake = both(ramp(Y, length / 2 - 0.004, length / 2 - 0.003), lambda points: (
        np.hypot(points[:, 0], points[:, 2]) < 0.68 * r[-1]).astype(float))
    return pod.painted(mix(paint, SOOT, intake)).turned("z", -90)


def _screw(rng, radius, paint):
    """Propeller at the origin, its axis along x."""
    n = rng.integers(2, 5)
    spinner = revolve([(0, -0.03), (0.034, -0.03), (0.03, 0.02), (0.012, 0.045), (0, 0.048)], 32)
    phase = rng.uniform(0, 180)
    blades = [
        rod((0, 0, 0), (0, radius, 0), [[0.016, 0.02], [0.016, 0.03]], 4.0)
        .turned("x", phase + 360 / n * i).painted(SOOT)
        for i in range(n)
    ]
    return [spinner.turned("z", -90).painted(paint), *blades]


def _livery(rng, base, accent, length, radius, windows=True):
    """Colours of a fuselage."""
    style = choose(rng, cheat=0.35, belly=0.25, tail=0.25, plain=0.15)
    paint = {
        "cheat": mix(base, accent, band(Y, -0.45 * radius, -0.1 * radius)),
        "belly": mix(base, accent, ramp(-Y, 0.25 * radius, 0.25 * radius + 0.005)),
        "tail": mix(base, accent, ramp(-X - 0.5 * Y, 0.24 * length, 0.24 * length + 0.005)),
        "plain": base,
    }[style]
    if windows:
        row = both(band(Y, 0.1 * radius, 0.1 * radius + 0.022), stripes(X, 0.036, 0.55))
        paint = mix(paint, GLASS, both(row, band(X, -0.26 * length, 0.34 * length)))
    return paint


def _tail(rng, x, y, size, base, accent, forms):
    """Tail planes around (x, y)."""
    form = choose(rng, **forms)
    sweep = size * rng.uniform(0.2, 0.6)
    height, span = size * rng.uniform(0.8, 1.15), size * rng.uniform(1.7, 2.3)
    chord = size * rng.uniform(0.65, 0.85)
    if form == "v":
        plane = _fin(1.1 * height, chord, 0.6 * chord, sweep).moved(x, y)
        return [plane.turned("x", angle).painted(accent) for angle in (-40, 40)]
    planes = _wing(span, chord, 0.55 * chord, sweep, rng.uniform(0, 0.03), 0.042)
    if form == "twin":
        fin = _fin(0.75 * height, 0.8 * chord, 0.5 * chord, 0.5 * sweep)
        fins = [fin.moved(x - 0.6 * sweep, y - 0.01, z) for z in (-0.4 * span, 0.4 * span)]
        return [planes.moved(x, y).painted(base), *(fin.painted(accent) for fin in fins)]
    fin = _fin(height, chord * 1.1, 0.6 * chord, sweep).moved(x, y).painted(accent)
    at = (x - sweep, y + height - 0.015) if form == "t" else (x, y)
    return [planes.moved(*at).painted(accent if form == "t" else base), fin]


# ---------------------------------------------------------------- kinds


def _airliner(rng, base, accent):
    length = rng.uniform(0.75, 0.95)
    radius = rng.uniform(0.045, 0.075)
    double = 1.25 if chance(rng, 0.2) else 1.0  # two decks
    body = _fuselage(length, radius, 2.2 * radius, 0.35 * length, 0.6 * radius, double)
    bow = length / 2 - 1.2 * radius
    cockpit = both(band(Y, 0.15 * radius, 0.7 * radius), ramp(X, bow, bow + 0.004))
    paint = mix(_livery(rng, base, accent, length, radius), GLASS, cockpit)
    span, root = rng.uniform(0.7, 0.95), rng.uniform(0.17, 0.24)
    sweep, dihedral = rng.uniform(0.08, 0.28), rng.uniform(0.02, 0.08)
    low = chance(rng, 0.75)
    y, x = (-0.55 if low else 0.8) * radius, rng.uniform(0.02, 0.12)
    dihedral = dihedral if low else -0.3 * dihedral
    wing = _wing(span, root, rng.uniform(0.35, 0.5) * root, sweep, dihedral, 0.055)
    metal = colour(rng, METALS) if chance(rng, 0.5) else base
    parts = [body.painted(paint), wing.moved(x, y).painted(metal)]
    tail_x, tail_y = -length / 2 + 0.09, 0.55 * radius
    at_tail = chance(rng, 0.25)
    forms = dict(t=1.0) if at_tail else dict(low=0.8, t=0.2)
    parts += _tail(rng, tail_x, tail_y, rng.uniform(0.15, 0.2), base, accent, forms)
    paint = accent if chance(rng, 0.5) else base
    engine = _nacelle(rng.uniform(0.11, 0.16), rng.uniform(0.032, 0.045), paint)
    if at_tail:
        for side in (-1, 1):
            parts.append(engine.moved(-0.28 * length, 0.4 * radius, side * (radius + 0.025)))
        return parts
    for share in (0.32, 0.62) if chance(rng, 0.35) else (rng.uniform(0.32, 0.42),):
        for side in (-1, 1):
            ahead, above = 0.3 * root - share * sweep, share * dihedral - 0.045
            parts.append(engine.moved(x + ahead, y + above, side * share * span / 2))
    return parts


def _propeller(rng, base, accent):
    length, radius = rng.uniform(0.6, 0.75), rng.uniform(0.05, 0.07)
    body = _fuselage(length, radius, 0.12, 0.5 * length, 0.3 * radius, rng.uniform(1.0, 1.25), 3.0)
    paint = _livery(rng, base, accent, length, radius, windows=False)
    span, root = rng.uniform(0.75, 0.95), rng.uniform(0.13, 0.18)
    high = chance(rng, 0.55)
    sweep, at = rng.uniform(-0.02, 0.04), rng.uniform(0.08, 0.14)
    wing_y = radius * (1.25 if high else -0.6)
    wing = _wing(span, root, rng.uniform(0.6, 1) * root, sweep, rng.uniform(0, 0.05), 0.045)
    parts = [
        body.painted(paint), wing.moved(at, wing_y).painted(accent if chance(rng, 0.4) else base),
        *_tail(rng, -length / 2 + 0.06, 0.3 * radius, rng.uniform(0.13, 0.17), base, accent,
               dict(low=0.65, t=0.15, twin=0.2)),
    ]
    x = np.linspace(-0.1, 0.09, 24)
    bubble = np.sqrt(1 - (x / 0.1).clip(-1, 1) ** 2) * 0.05 + 1e-3
    parts.append(sections(x + at + 0.02, 0.75 * radius, bubble, 0.75 * bubble).painted(GLASS))
    if chance(rng, 0.55):
        screw = _screw(rng, rng.uniform(0.1, 0.15), accent)
        parts += [part.moved(length / 2 - 0.02, -0.2 * radius) for part in screw]
    else:
        for side in (-1, 1):
            z = side * rng.uniform(0.3, 0.36) * span / 2
            pod = _nacelle(0.2, 0.038, base).moved(at + 0.06, wing_y, z)
            screw = _screw(rng, 0.1, accent)
            parts += [pod, *(part.moved(at + 0.17, wing_y, z) for part in screw)]
    if chance(rng, 0.3):  # floats
        for side in (-1, 1):
            x = np.linspace(-1, 1, 30)
            r = 0.035 * np.sqrt(1 - x**4) + 1e-3
            z, low = side * 0.13, -radius - 0.1
            parts.append(sections(0.26 * x + at, low, r, r, 3.0).painted(accent))
            for strut in (-0.08, 0.08):
                parts.append(rod((at + strut, low, z), (at + strut, 0, 0), 0.017).painted(SOOT))
    return parts


def _fighter(rng, base, accent):
    length, radius = rng.uniform(0.85, 0.95), rng.uniform(0.045, 0.065)
    body = _fuselage(length, radius, rng.uniform(0.3, 0.42), 0.3, 0.0, rng.uniform(0.85, 1.1), 2.5)
    cut = rng.uniform(0.2, 0.5)
    camouflage = mix(base, accent, stripes(X + cut * Z, rng.uniform(0.2, 0.35), 0.5, rng.random()))
    paint = camouflage if chance(rng, 0.4) else _livery(rng, base, accent, length, radius, False)
    delta = chance(rng, 0.45)
    span = rng.uniform(0.5, 0.72)
    root = rng.uniform(0.4, 0.55) if delta else rng.uniform(0.22, 0.3)
    tip = rng.uniform(0.06, 0.12)
    sweep = root / 2 - tip / 2 + rng.uniform(-0.03, 0.05) if delta else rng.uniform(0.1, 0.22)
    if not delta and chance(rng, 0.2):
        sweep = -0.8 * sweep  # forwards
    x = -0.12 if delta else -0.03
    wing = _wing(span, root, tip, sweep, rng.uniform(-0.02, 0.03), 0.045).moved(x, -0.1 * radius)
    parts = [body.painted(paint), wing.painted(camouflage if chance(rng, 0.4) else base)]
    end = -length / 2
    size = rng.uniform(0.14, 0.18)
    for z, tilt in ([(0, 0)] if chance(rng, 0.5) else [(-0.5 * radius, -18), (0.5 * radius, 18)]):
        fin = _fin(size, 1.1 * size, 0.5 * size, 0.5 * size, 0.04)
        parts.append(fin.turned("x", tilt).moved(end + 0.13, 0.4 * radius, z).painted(accent))
    if not delta:
        planes = _wing(0.55 * span, 0.14, 0.07, 0.08, 0, 0.04)
        parts.append(planes.moved(end + 0.09, 0).painted(base))
    elif chance(rng, 0.5):  # canards
        parts.append(_wing(0.3, 0.1, 0.05, 0.06, 0, 0.04).moved(0.17, 0.2 * radius).painted(accent))
    t = np.linspace(-1, 1, 24)
    bubble = np.sqrt(1 - t**2) * rng.uniform(0.032, 0.042) + 1e-3
    parts.append(sections(0.12 * t + 0.16, 0.7 * radius, 1.2 * bubble, 0.9 * bubble).painted(GLASS))
    nozzle = _nacelle(0.1, 0.75 * radius, SOOT)
    for z in ([0] if chance(rng, 0.5) else [-0.6 * radius, 0.6 * radius]):
        parts.append(nozzle.moved(end + 0.02, 0, z))
    return parts


def _glider(rng, base, accent):
    length, radius = rng.uniform(0.5, 0.62), rng.uniform(0.035, 0.045)
    body = _fuselage(length, radius, 0.18, 0.45 * length, 0.0, 1.15)
    glass = both(ramp(Y, 0.1 * radius, 0.1 * radius + 0.004), band(X, 0.2 * length, 0.4 * length))
    paint = mix(_livery(rng, base, accent, length, radius, False), GLASS, glass)
    sweep, dihedral = rng.uniform(0, 0.05), rng.uniform(0.02, 0.09)
    wing = _wing(0.95, rng.uniform(0.09, 0.12), 0.06, sweep, dihedral, 0.04)
    return [
        body.painted(paint), wing.moved(0.08, 0.5 * radius).painted(base),
        *_tail(rng, -length / 2 + 0.05, 0, rng.uniform(0.12, 0.15), base, accent,
               dict(low=0.3, t=0.4, v=0.3)),
    ]


def _biplane(rng, base, accent):
    length, radius = rng.uniform(0.58, 0.68), rng.uniform(0.055, 0.068)
    body = _fuselage(length, radius, 0.08, 0.6 * length, 0.3 * radius, 1.1, 2.6)
    span, root, gap = rng.uniform(0.72, 0.9), rng.uniform(0.14, 0.18), rng.uniform(0.17, 0.22)
    stagger, at = rng.uniform(-0.02, 0.05), 0.12
    low, high = -0.7 * radius, -0.7 * radius + gap
    wing = _wing(span, root, 0.9 * root, 0.0, 0.0, 0.036).painted(accent)
    parts = [
        body.painted(_livery(rng, base, accent, length, radius, False)),
        wing.moved(at, low), wing.moved(at + stagger, high),
        *_tail(rng, -length / 2 + 0.06, 0.3 * radius, 0.14, base, accent, dict(low=1.0)),
    ]
    for z in (-0.33 * span, -0.03, 0.03, 0.33 * span):
        parts.append(rod((at, low, z), (at + stagger, high, z), 0.017).painted(SOOT))
    parts += [part.moved(length / 2) for part in _screw(rng, 0.13, accent)]
    for side in (-1, 1):
        wheel = revolve([(0, -0.02), (0.05, -0.02), (0.05, 0.02), (0, 0.02)], 32)
        x, y, z = at + 0.05, -radius - 0.08, side * 0.1
        parts.append(wheel.turned("x", 90).moved(x, y, z).painted(SOOT))
        parts.append(rod((x, y, z), (at, -0.5 * radius, 0.3 * z), 0.017).painted(SOOT))
    return parts
