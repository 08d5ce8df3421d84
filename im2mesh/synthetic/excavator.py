"""A toy excavator: shovel along +x, up along +y, cab on the side of -z.

It is what a soft field cannot show: studs, teeth, cleats, thin rods beside thick ones, and gaps
that the background is seen through, in the cab, in the tracks and all along the arm.
"""

from dataclasses import replace

import numpy as np

from im2mesh.synthetic.shapes import (
    band, both, box, mix, prism, revolve, rod, smooth, solid, spot, stripes, tube,
)

X, Y, Z = np.eye(3)
YELLOW, AMBER, ORANGE, RED = map(solid, ("#f6bd1f", "#e0a010", "#ee7a26", "#cc3430"))
DARK, BLACK, GREY, SILVER = map(solid, ("#46464f", "#24242a", "#8d9098", "#c9ccd2"))
WHITE, BLUE, SKIN = map(solid, ("#fbf8f0", "#2a62ae", "#f0c08a"))

TRACK = -0.11, -0.31, 0.165  # x and y of a track's middle, |z|
WHEELBASE, TRACK_HEIGHT, TRACK_WIDTH = 0.34, 0.17, 0.11
DECK, DECK_THICKNESS = -0.16, 0.04  # upper side of the platform that everything stands on
ARM = 0.03  # z of the arm
BUCKET_WIDTH = 0.2


def excavator():
    """Parts of the machine, all within 0.45 of the origin along every axis."""
    return [
        *_track(1), *_track(-1), *_chassis(), *_platform(), *_engine(), *_cab(), *_driver(),
        *_boom(), *_stick(), *_bucket(),
    ]


# ---------------------------------------------------------------- below


def _track(side):
    x, y, z = TRACK
    loop = _loop(WHEELBASE / 2, TRACK_HEIGHT / 2 - 0.012)
    belt = tube(loop, (0.012, TRACK_WIDTH / 2), up=Z, closed=True, power=12)
    place = dict(x=x, y=y, z=side * z)
    middle, ahead = loop[::6], np.roll(loop, -3, 0)[::6] - np.roll(loop, 3, 0)[::6]
    cleats = [
        box(0.016, 0.02, TRACK_WIDTH + 0.006, corner=0.003, bevel=0.003)
        .moved(y=0.012)
        .turned("z", np.degrees(np.arctan2(along[1], along[0])) + 180)
        .moved(*at)
        for at, along in zip(middle, ahead)
    ]
    wheels = [
        _wheel(radius, 0.085).moved(at_x, at_y)
        for radius, at_x, at_y in (
            (0.056, -WHEELBASE / 2, 0), (0.056, WHEELBASE / 2, 0),
            (0.026, -0.058, -0.036), (0.026, 0, -0.036), (0.026, 0.058, -0.036),
        )
    ]
    return [
        belt.painted(DARK).moved(**place),
        _joined(cleats).painted(BLACK).moved(**place),
        *(wheel.moved(**place) for wheel in wheels),
    ]


def _loop(half_length, radius):
    """Points (96, 3) in equal steps along a rounded bar in the plane of x and y."""
    straight, arc = 2 * half_length, np.pi * radius
    s = np.linspace(0, 2 * (straight + arc), 96, endpoint=False)
    half, s = s >= straight + arc, s % (straight + arc)
    angle = np.clip((s - straight) / radius, 0, np.pi)
    x = np.minimum(s, straight) - half_length + radius * np.sin(angle)
    points = np.stack([x, -radius * np.cos(angle), np.zeros(len(s))], 1)
    return np.where(half[:, None], -points, points)


def _wheel(radius, width):
    """A wheel about the z axis with a hub that stands out."""
    hub, half = 0.45 * radius, width / 2
    profile = [(0, -half - 0.012), (hub, -half - 0.012), (hub, -half), (radius, -half)]
    wheel = revolve(profile + [(r, -y) for r, y in profile[::-1]], 48)
    paint = mix(mix(YELLOW, AMBER, _beyond(0.72 * radius)), RED, _within(hub + 0.001))
    return wheel.painted(paint).turned("x", 90)


def _within(radius):
    return spot((0, 0, 0), radius, (1, np.inf, 1))


def _beyond(radius):
    within = _within(radius)
    return lambda points: 1 - within(points)


def _chassis():
    x, y, z = TRACK
    frame = box(0.24, 0.05, 2 * z - 0.02, corner=0.02).moved(x, -0.268)
    axles = [rod((x + dx, y, -z), (x + dx, y, z), 0.016) for dx in (-WHEELBASE / 2, WHEELBASE / 2)]
    ring = revolve([(0.1, -0.245), (0.1, DECK - DECK_THICKNESS + 0.005)], 64).moved(x)
    return [frame.painted(GREY), _joined(axles).painted(SILVER), ring.painted(BLACK)]


# ---------------------------------------------------------------- platform and engine


def _platform():
    deck = box(0.46, DECK_THICKNESS, 0.37, corner=0.05, bevel=0.008).moved(-0.13, DECK - 0.02)
    hazard = both(stripes(X + Y + Z, 0.055), band(Y, DECK - 0.034, DECK - 0.006))
    chest = box(0.16, 0.085, 0.12, corner=0.012, bevel=0.006).moved(-0.01, DECK + 0.04, 0.12)
    sticker = mix(
        mix(AMBER, WHITE, spot((-0.01, DECK + 0.042, 0.18), 0.03, (1, 1, np.inf))),
        RED, spot((-0.01, DECK + 0.042, 0.18), 0.018, (1, 1, np.inf)),
    )
    bar = smooth([(0.05, 0, 0), (0.05, 0.07, 0), (0.02, 0.09, 0), (-0.05, 0.09, 0), (-0.08, 0.07, 0),
                  (-0.08, 0, 0)], 49)  # fmt: skip
    rail = tube(bar, 0.0065, up=Z, n=12).moved(-0.005, DECK + 0.075, 0.168)
    return [
        deck.painted(mix(YELLOW, BLACK, hazard)),
        chest.painted(sticker), _studs(3, 2, -0.01, DECK + 0.0825, 0.115, AMBER),
        rail.painted(SILVER),
    ]


def _engine():
    top = DECK + 0.165
    hood = box(0.2, 0.17, 0.33, corner=0.02, bevel=0.008).moved(-0.235, DECK + 0.08)
    slits = both(both(stripes(Y, 0.026), band(Y, DECK + 0.04, DECK + 0.13)), band(X, -0.29, -0.19))
    paint = mix(YELLOW, BLACK, slits)
    weight = box(0.09, 0.13, 0.35, corner=0.035, bevel=0.015).moved(-0.37, DECK + 0.055)
    hazard = both(stripes(Y + Z, 0.075), band(Y, DECK + 0.02, DECK + 0.09))
    pipe = revolve([(0.015, 0), (0.015, 0.1), (0.024, 0.105), (0.024, 0.135), (0.013, 0.135),
                    (0.013, 0.08), (0, 0.08)], 32)  # fmt: skip
    return [
        hood.painted(paint), _studs(3, 5, -0.235, top, 0, YELLOW, skip=(2, 4)),
        weight.painted(mix(DARK, YELLOW, hazard)),
        pipe.moved(-0.187, top - 0.005, 0.108).painted(SILVER),
    ]


def _studs(n_x, n_z, x, y, z, paint, pitch=0.058, skip=None):
    """A grid of studs, as one part, on a level face of height y."""
    stud = revolve([(0, -0.004), (0.0165, -0.004), (0.0165, 0.011), (0.0145, 0.0135), (0, 0.0135)], 32)
    return _joined(
        stud.moved(x + pitch * (i - (n_x - 1) / 2), y, z + pitch * (j - (n_z - 1) / 2))
        for i in range(n_x) for j in range(n_z) if (i, j) != skip
    ).painted(paint)


# ---------------------------------------------------------------- cab

CAB = -0.03, -0.105  # x and z of its middle
CAB_LENGTH, CAB_WIDTH, SILL, ROOF = 0.2, 0.15, DECK + 0.085, 0.16


def _cab():
    x, z = CAB
    low, high = DECK - 0.005, ROOF + 0.005
    panel, post = 0.014, 0.009
    dx, dz = CAB_LENGTH / 2 - post, CAB_WIDTH / 2 - post
    walls = [
        box(panel, SILL - low, CAB_WIDTH, corner=0.003, bevel=0.003).moved(-CAB_LENGTH / 2 + 0.007),
        box(panel, SILL - low, CAB_WIDTH, corner=0.003, bevel=0.003).moved(CAB_LENGTH / 2 - 0.007),
        box(CAB_LENGTH - 0.01, SILL - low, panel, corner=0.003, bevel=0.003).moved(z=CAB_WIDTH / 2 - 0.007),
        box(CAB_LENGTH - 0.01, SILL - low, panel, corner=0.003, bevel=0.003).moved(z=-CAB_WIDTH / 2 + 0.007),
    ]
    number = spot((0.0, 0, 0), 0.027, (1, 1, np.inf))
    dot = spot((0.0, 0, 0), 0.014, (1, 1, np.inf))
    livery = mix(mix(YELLOW, WHITE, number), BLUE, dot)
    posts = [
        rod((sx * dx, SILL - 0.01, sz * dz), (sx * dx, high, sz * dz), post, power=8)
        for sx in (-1, 1) for sz in (-1, 1)
    ]
    roof = box(CAB_LENGTH + 0.025, 0.028, CAB_WIDTH + 0.02, corner=0.02, bevel=0.007)
    beacon = revolve([(0.022, -0.005), (0.022, 0.012), (0.018, 0.03), (0.009, 0.04), (0, 0.042)], 32)
    return [
        *(wall.painted(livery).moved(x, (SILL + low) / 2, z) for wall in walls),
        _joined(posts).painted(BLACK).moved(x, 0, z),
        roof.painted(YELLOW).moved(x, ROOF + 0.014, z),
        _studs(2, 2, x + 0.04, ROOF + 0.028, z, YELLOW),
        beacon.painted(ORANGE).moved(x - 0.07, ROOF + 0.028, z),
    ]


def _driver():
    x, z = CAB
    seat = box(0.02, 0.17, 0.07, corner=0.006, bevel=0.006).moved(x - 0.068, DECK + 0.08, z)
    body = box(0.05, 0.13, 0.07, corner=0.012, bevel=0.01).moved(x - 0.037, DECK + 0.06, z)
    head = revolve([(0, -0.03), (0.024, -0.03), (0.027, -0.024), (0.027, 0.024), (0.02, 0.03),
                    (0.012, 0.03), (0.012, 0.04), (0, 0.04)], 32)  # fmt: skip
    levers = [
        rod((x + 0.06, DECK, z + dz), (x + 0.045, SILL + 0.03, z + dz), 0.0055, n=12)
        for dz in (-0.035, 0.035)
    ]
    left_and_right = band(Z, 0.006, 0.016)
    eyes = both(
        lambda points: left_and_right(np.abs(points)), both(band(Y, 0.0, 0.012), band(X, 0, 0.1))
    )
    return [
        seat.painted(DARK), body.painted(BLUE),
        head.painted(mix(mix(SKIN, BLACK, eyes), RED, band(Y, 0.02, 0.05))).moved(x - 0.037, DECK + 0.152, z),
        _joined(levers).painted(BLACK),
    ]


# ---------------------------------------------------------------- arm

FOOT, KNEE, WRIST = (0.045, -0.135), (0.255, 0.365), (0.385, 0.0)  # pivots (x, y)
TAIL = (0.228, 0.425)  # the short end of the stick, beyond the knee


def _boom():
    bend = smooth([FOOT, (0.06, 0.06), (0.12, 0.26), KNEE], 41)
    bend = np.c_[bend, np.zeros(len(bend))]
    plates = [
        tube(bend, (0.024, 0.0095), up=Z, power=8).moved(z=ARM + side * 0.038) for side in (-1, 1)
    ]
    pins = [_pin(at, 0.1, 0.017) for at in (FOOT, KNEE)]
    feet = [
        prism([(-0.03, 0), (0.03, 0), (0.018, 0.07), (-0.018, 0.07)], 0.012).turned("x", -90)
        .moved(FOOT[0], DECK - 0.005, ARM + side * 0.06) for side in (-1, 1)
    ]
    return [
        *(plate.painted(YELLOW) for plate in plates),
        _joined(pins).painted(SILVER), _joined(feet).painted(DARK),
        *_cylinder((0.095, DECK - 0.015), (0.152, 0.27)),
        *_cylinder((0.118, 0.3), TAIL, share=0.62),
    ]


def _stick():
    bar = rod((*TAIL, ARM), (*WRIST, ARM), (0.019, 0.024), power=8)
    reach = np.subtract(WRIST, TAIL) / np.linalg.norm(np.subtract(WRIST, TAIL))
    name = both(stripes(np.r_[reach, 0], 0.045), band(np.r_[reach, 0], -0.13, 0.03))
    links = [_pin(at, 0.066, 0.013) for at in (TAIL, WRIST)]
    return [
        bar.painted(mix(YELLOW, BLACK, name)), _joined(links).painted(SILVER),
        *_cylinder((0.318, 0.3), (0.427, 0.03), share=0.6, radius=0.012),
    ]


def _pin(at, width, radius):
    return rod((*at, ARM - width / 2), (*at, ARM + width / 2), radius)


def _cylinder(start, end, share=0.55, radius=0.014):
    """A hydraulic cylinder in the plane of the arm: barrel, collar and the thin rod, its two eyes."""
    start, end = np.array([*start, ARM]), np.array([*end, ARM])
    middle = start + share * (end - start)
    collar = middle - 0.014 * (end - start) / np.linalg.norm(end - start)
    return [
        rod(start, middle, radius).painted(DARK), rod(collar, middle, radius + 0.004).painted(ORANGE),
        rod(middle, end, 0.5 * radius, n=16).painted(SILVER),
        _joined(_pin(at[:2], 0.05, 0.011) for at in (start, end)).painted(BLACK),
    ]


# ---------------------------------------------------------------- bucket


def _bucket():
    shell = smooth([(0.372, 0.015), (0.425, -0.03), (0.428, -0.115), (0.37, -0.17), (0.255, -0.185)], 41)
    wall = tube(np.c_[shell, np.zeros(41)], (0.0095, BUCKET_WIDTH / 2), up=Z, power=12).moved(z=ARM)
    cheek = prism(shell * [1, -1], 0.012).turned("x", 90)  # its outline lies in x and y then
    cheeks = [cheek.moved(z=ARM + side * (BUCKET_WIDTH / 2 - 0.006)) for side in (-1, 1)]
    teeth = [
        rod((0.275, -0.184, z), (0.21, -0.17, z), np.array([[0.011, 0.012], [0.003, 0.009]]), power=8)
        for z in ARM + 0.88 * BUCKET_WIDTH * (np.arange(5) / 4 - 0.5)
    ]
    lugs = [
        rod((0.385, -0.03, ARM + dz), (0.427, 0.035, ARM + dz), (0.007, 0.014), power=8)
        for dz in (-0.036, 0.036)
    ]
    return [
        wall.painted(GREY), *(part.painted(GREY) for part in cheeks), _joined(teeth).painted(SILVER),
        _pin(WRIST, 0.1, 0.012).painted(BLACK), _joined(lugs).painted(DARK),
    ]


def _joined(parts):
    """Parts that do not touch each other as one, to be painted."""
    parts = list(parts)
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    return replace(
        parts[0],
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces + start for part, start in zip(parts, starts)]),
    )
