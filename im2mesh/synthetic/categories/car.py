"""Cars and buses: they drive towards -z. Built along x, the bow at +x, the street at y = 0."""

from dataclasses import dataclass

import numpy as np

from im2mesh.synthetic.categories.draws import (
    GLASS, METALS, PAINTS, RUBBER, SOOT, WHITE, chance, choose, colour, two_colours,
)
from im2mesh.synthetic.shapes import (
    band, both, box, loft, mix, ramp, revolve, rod, rounded_rectangle, sections, solid, spot,
    stripes,
)

X, Y, Z = np.eye(3)
RED_LIGHT, LIGHT = solid("#d3262b"), solid("#fdf3c4")
LENGTH = 0.9


@dataclass(frozen=True)
class Form:
    """Sizes of a car of length 0.9, heights above the street.

    width, clearance, wheel : whole width; height of the floor; radius of the wheels
    hood, belt, deck : heights of the body at the front end, below the windows, at the rear end
    roof : height of the roof
    base, top : (rear, front) x of the cabin at the belt and at the roof
    axles : (rear, front) x
    """

    width: float
    clearance: float
    wheel: float
    hood: float
    belt: float
    deck: float
    roof: float
    base: tuple
    top: tuple
    axles: tuple


def car(rng):
    kind = choose(
        rng, sedan=0.2, hatchback=0.16, suv=0.15, sports=0.14, van=0.12, pickup=0.13, bus=0.1
    )
    form = _form(rng, kind)
    paint, second = two_colours(rng, PAINTS)
    trim = SOOT if chance(rng, 0.5) else paint
    below = paint
    if chance(rng, 0.25):
        below = mix(paint, second, band(Y, 0, form.belt * rng.uniform(0.5, 0.8)))
    roof = second if chance(rng, 0.2) else paint
    parts = [
        _body(rng, form).painted(_lights(form, below)),
        _cabin(form).painted(_windows(rng, form, kind, paint, roof)),
        *_wheels(rng, form),
        *_extras(rng, form, kind, paint, trim),
    ]
    return [part.turned("y", 90) for part in parts]


def _form(rng, kind):
    u = rng.uniform
    half = LENGTH / 2
    axles = (-half + u(0.15, 0.2), half - u(0.14, 0.18))
    width, clearance = u(0.36, 0.42), u(0.05, 0.07)
    if kind == "sports":
        belt, rear = u(0.175, 0.2), u(-0.4, -0.3)
        return Form(
            u(0.38, 0.43), 0.04, u(0.07, 0.078), u(0.13, 0.15), belt, belt - u(0, 0.02),
            belt + u(0.08, 0.11), (rear, u(0.1, 0.2)), (u(-0.24, -0.14), u(-0.04, 0.04)), axles,
        )
    if kind in ("sedan", "hatchback"):
        belt = u(0.19, 0.23)
        rear = u(-0.36, -0.27) if kind == "sedan" else u(-0.44, -0.41)
        return Form(
            width, clearance, u(0.07, 0.085), u(0.16, 0.19), belt, belt - u(0, 0.03),
            belt + u(0.11, 0.15), (rear, u(0.14, 0.22)), (rear + u(0.08, 0.14), u(0, 0.1)), axles,
        )
    if kind == "suv":
        belt = u(0.24, 0.28)
        return Form(
            width + 0.03, u(0.07, 0.1), u(0.09, 0.108), u(0.21, 0.25), belt, belt,
            belt + u(0.14, 0.18), (-0.43, u(0.14, 0.24)), (u(-0.42, -0.34), u(0.06, 0.14)), axles,
        )
    if kind == "van":
        belt = u(0.22, 0.27)
        return Form(
            width + 0.02, clearance, u(0.072, 0.088), u(0.17, 0.22), belt, belt,
            belt + u(0.18, 0.28), (-0.435, u(0.28, 0.4)), (-0.43, u(0.1, 0.26)), axles,
        )
    if kind == "pickup":
        belt, rear = u(0.25, 0.28), u(-0.12, 0.02)
        return Form(
            width + 0.02, u(0.06, 0.09), u(0.085, 0.098), u(0.2, 0.24), belt, u(0.175, 0.19),
            belt + u(0.12, 0.16), (rear, rear + u(0.24, 0.34)), (rear + 0.02, rear + u(0.16, 0.22)),
            axles,
        )
    belt = u(0.16, 0.22)  # a bus
    return Form(
        u(0.26, 0.34), 0.045, u(0.06, 0.075), belt, belt, belt, belt + u(0.12, 0.24),
        (-0.445, 0.445), (-0.44, u(0.42, 0.44)),
        (-half + u(0.15, 0.22), half - u(0.12, 0.18)),
    )


def _body(rng, form):
    """The lower half: upright sections whose upper edge runs hood - belt - deck."""
    half = LENGTH / 2
    x = half * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 80))  # crowded at the ends
    rear, front = form.base
    ends = [-half, rear - 0.03, rear + 0.02, front - 0.02, front + 0.03, half]
    cowl = 0.7 * form.belt + 0.3 * form.hood
    top = np.interp(x, ends, [form.deck, form.deck, form.belt, form.belt, cowl, form.hood])
    nose, tail = rng.uniform(0.04, 0.12, 2)
    end = np.minimum((half - x) / nose, (half + x) / tail).clip(0, 1)
    round_off = np.sqrt(1 - (1 - end) ** 2)
    middle = (top + form.clearance) / 2
    tall = (top - form.clearance) / 2 * (0.55 + 0.45 * round_off)
    wide = form.width / 2 * (0.72 + 0.28 * round_off)
    return sections(x, middle, tall, wide, power=rng.uniform(4, 7))


def _cabin(form):
    """The glass house between belt and roof; it leans in on all sides."""
    rings = []
    height = form.roof - form.belt + 0.02
    for t, inset in [(0, 0), (0.85, 0), (0.94, 0.008), (0.985, 0.018), (1, 0.034)]:
        low, high, half = _cabin_at(form, t)
        ring = rounded_rectangle(high - low - 2 * inset, 2 * (half - inset), 0.03)
        rings.append(np.insert(ring + [(low + high) / 2, 0], 1, form.belt - 0.02 + t * height, 1))
    return loft(rings)


def _cabin_at(form, t):
    """Rear and front x, and half the width of the cabin, at a share t of its height."""
    low = form.base[0] + t * (form.top[0] - form.base[0])
    high = form.base[1] + t * (form.top[1] - form.base[1])
    lean = 0.03 if form.roof - form.belt > 0.17 else 0.05
    return low, high, form.width / 2 - 0.012 - lean * t


def _windows(rng, form, kind, paint, roof):
    height = form.roof - form.belt
    n_pillars = {"bus": rng.integers(4, 8), "sports": 0, "pickup": rng.integers(0, 2)}.get(
        kind, rng.integers(1, 3)
    )
    pillars = np.linspace(-1, 1, n_pillars + 2)[1:-1]
    cargo = kind == "van" and chance(rng, 0.5)  # no windows behind the driver
    top = form.roof - 0.03 if height < 0.2 else form.roof - rng.uniform(0.05, 0.1)

    def glass(points):
        x, y, z = points.T
        t = (y - form.belt + 0.02) / (height + 0.02)
        low, high, half = _cabin_at(form, t)
        u = (2 * x - low - high) / (high - low)
        v = np.abs(z) / half
        length = (high - low) / 2
        on_side = v > 0.93
        clear = (y > form.belt + 0.012) & (y < top)
        side = (np.abs(u) * length < length - 0.03) & (not cargo or u > 0.35)
        for pillar in pillars:
            side &= np.abs(u - pillar) * length > 0.011
        return (clear & np.where(on_side, side, (v < 0.86) & ((u > 0) | (not cargo)))).astype(float)

    shell = mix(paint, roof, lambda points: (points[:, 1] > top).astype(float))
    return mix(shell, GLASS, glass)


def _lights(form, paint):
    half, y = LENGTH / 2, 0.62 * form.hood + 0.4 * form.clearance
    rear_y = 0.62 * min(form.deck, form.belt) + 0.4 * form.clearance
    for side in (-1, 1):
        z = side * form.width * 0.31
        paint = mix(paint, LIGHT, spot((half, y, z), 0.032, (1.6, 0.9, 1.4)))
        paint = mix(paint, RED_LIGHT, spot((-half, rear_y, z), 0.032, (1.6, 0.9, 1.4)))
    paint = _arches(form, paint)
    grille = both(band(Y, form.clearance + 0.015, form.clearance + 0.045), band(Z, -0.12, 0.12))
    return mix(paint, SOOT, both(grille, lambda points: (points[:, 0] > 0.3).astype(float)))


def _arches(form, paint):
    """Dark sides around the wheels."""
    on_side = ramp(Z, 0.4 * form.width, 0.42 * form.width)
    for x in form.axles:
        disc = both(spot((x, form.wheel, 0), 1.17 * form.wheel, (1, 1, np.inf)), lambda points: (
            on_side(np.abs(points))
        ))
        paint = mix(paint, SOOT, disc)
    return paint


def _wheel(radius, width, hub):
    rim = 0.25 * width
    profile = [
        (0, -width / 2), (radius - rim, -width / 2), (radius, rim - width / 2),
        (radius, width / 2 - rim), (radius - rim, width / 2), (0, width / 2),
    ]
    disc = spot((0, 0, 0), 0.6 * radius, (1, np.inf, 1))
    nut = spot((0, 0, 0), 0.2 * radius, (1, np.inf, 1))
    return revolve(profile, 40).painted(mix(mix(RUBBER, hub, disc), SOOT, nut)).turned("x", 90)


def _wheels(rng, form):
    wheel = _wheel(form.wheel, 0.075, colour(rng, METALS))
    z = form.width / 2 - 0.03
    return [wheel.moved(x, form.wheel, side * z) for x in form.axles for side in (-1, 1)]


def _extras(rng, form, kind, paint, trim):
    half, parts = LENGTH / 2, []
    if kind == "sports" and chance(rng, 0.6):
        high = form.deck + rng.uniform(0.04, 0.07)
        parts.append(box(0.08, 0.032, 0.9 * form.width, 0.012, 0.012).moved(-half + 0.06, high))
        for side in (-1, 1):
            z = side * 0.3 * form.width
            foot, head = (-half + 0.07, form.deck - 0.04, z), (-half + 0.06, high, z)
            parts.append(rod(foot, head, 0.018, 4.0))
    if kind in ("suv", "hatchback", "van") and chance(rng, 0.35):
        low, high, _ = _cabin_at(form, 1)
        y = form.roof + 0.02
        for side in (-1, 1):
            z = side * (form.width / 2 - 0.085)
            parts.append(rod((low + 0.06, y, z), (high - 0.06, y, z), 0.017))
            for x in (low + 0.08, high - 0.08):
                parts.append(rod((x, y - 0.04, z), (x, y, z), 0.017))
    if kind == "pickup":
        front = form.base[0] + 0.02
        high, z = form.belt - 0.005, form.width / 2 - 0.028
        length = front + half - 0.005
        for side in (-1, 1):
            wall = box(length, high - 0.1, 0.045, 0.015, 0.012)
            parts.append(wall.moved(front - length / 2, (high + 0.1) / 2, side * z))
        gate = box(0.045, high - 0.1, form.width - 0.03, 0.015, 0.012)
        parts.append(gate.moved(-half + 0.03, (high + 0.1) / 2))
        parts = [part.painted(_arches(form, paint)) for part in parts]
        if chance(rng, 0.4):  # cargo
            load = box(0.8 * length, rng.uniform(0.08, 0.2), 0.75 * form.width, 0.02, 0.02)
            return [*parts, load.painted(colour(rng, PAINTS)).moved(front - length / 2, 0.25)]
        return parts
    parts = [part.painted(trim) for part in parts]
    if kind == "suv" and chance(rng, 0.4):
        spare = _wheel(form.wheel, 0.06, paint).turned("y", 90)
        parts.append(spare.moved(-half - 0.015, form.belt - 0.02))
    if kind in ("sedan", "hatchback") and chance(rng, 0.2):  # a taxi
        low, high, _ = _cabin_at(form, 1)
        sign = box(0.05, 0.05, 0.13, 0.015, 0.012).painted(mix(WHITE, SOOT, stripes(Z, 0.05)))
        parts.append(sign.moved((low + high) / 2, form.roof + 0.015))
    return parts
