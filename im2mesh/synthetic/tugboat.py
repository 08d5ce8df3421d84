"""The toy tugboat: bow along +x, mast along +y, starboard along +z."""

import numpy as np

from im2mesh.synthetic.shapes import (
    band, both, box, checks, loft, mix, prism, ramp, revolve, sectors, solid, sphere, spot,
    stripes, torus, tube,
)

X, Y, Z = np.eye(3)
RED, DARK_RED, ORANGE = solid("#c8372d"), solid("#8c2430"), solid("#ef7d22")
YELLOW, LIME, GREEN = solid("#f4b92e"), solid("#d8e08a"), solid("#2f9e57")
SKY, TEAL, GLASS, NAVY = solid("#9fd3e6"), solid("#2f8f9d"), solid("#2b5d86"), solid("#1f3f78")
WHITE, CREAM, WOOD, DARK_WOOD = map(solid, ("#fbf7ee", "#f3e6c8", "#c98f52", "#8f5a2f"))
STEEL, GREY, RUBBER = solid("#7b8794"), solid("#6d6d78"), solid("#35353d")


def tugboat():
    """Parts of the boat, all within 0.45 of the origin along every axis."""
    return [*_hull(), *_deck(), *_house(), *_deck_gear(), *_rigging()]


# ---------------------------------------------------------------- hull
# Its lines are functions of u, which runs from 0 at the stern to 1 at the bow.

LENGTH, WALL, DECK_DROP, FULLNESS = 0.85, 0.03, 0.015, 2.6
STATIONS = (1 - np.cos(np.linspace(0, np.pi, 90))) / 2  # crowded at the rounded ends


def _x(u):
    return LENGTH * (u - 0.5)


def _half_beam(u):
    aft = np.clip((0.36 - u) / 0.36, 0, 1)
    fore = np.clip((u - 0.36) / 0.64, 0, 1)
    return 0.012 + 0.163 * np.sqrt(1 - aft**2.6) * (1 - fore**2.4)


def _sheer(u):
    aft, fore = np.clip(0.35 - u, 0, 1), np.clip((u - 0.35) / 0.65, 0, 1)
    return -0.07 + 0.12 * aft**2 + 0.13 * fore**2


def _keel(u):
    aft, fore = np.clip((0.34 - u) / 0.34, 0, 1), np.clip((u - 0.7) / 0.3, 0, 1)
    return -0.30 + 0.12 * aft**2 + 0.19 * fore**3


def _below_sheer(points):
    """Points with their heights taken from the sheer line."""
    return points - _sheer(points[:, :1] / LENGTH + 0.5) * Y


def _side(u, below):
    """Half width of the hull at a depth ``below`` the sheer line."""
    depth = below / (_sheer(u) - _keel(u))
    return _half_beam(u) * (1 - depth**FULLNESS) ** (1 / FULLNESS)


def _deck_half_beam(u):
    return np.maximum(_half_beam(u) - WALL, 0.4 * _half_beam(u))


def _hull():
    u = STATIONS
    half_beam, sheer, inner = (
        line(u)[:, None] for line in (_half_beam, _sheer, _deck_half_beam)
    )
    t = np.linspace(0, np.pi, 49)
    z = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** (2 / FULLNESS) * half_beam
    y = sheer - np.sin(t) ** (2 / FULLNESS) * (sheer - _keel(u)[:, None])
    drop = DECK_DROP * np.clip(np.minimum(u, 0.98 - u) / 0.02, 0, 1)[:, None]
    z = np.concatenate([z, inner * [-1, -1, 1, 1]], 1)
    y = np.concatenate([y, sheer - drop * [0, 1, 1, 0]], 1)

    topsides = mix(NAVY, TEAL, ramp(X, -0.4, 0.42))
    bottom = mix(RED, DARK_RED, checks(0.13, phase=0.07))
    paint = mix(mix(topsides, bottom, ramp(-Y, 0.190, 0.196)), WHITE, band(Y, -0.194, -0.170))
    rail = band(Y, -0.062, -0.036)
    paint = mix(paint, mix(CREAM, RED, stripes(X, 0.14)), lambda points: rail(_below_sheer(points)))

    rudder = prism([(-0.435, -0.33), (-0.375, -0.33), (-0.375, -0.12), (-0.425, -0.12)], 0.04)
    return [
        _frames(u, y, z).painted(paint),
        rudder.turned("x", -90).painted(mix(YELLOW, ORANGE, stripes(Y, 0.06))),
    ]


def _deck():
    u = STATIONS[(STATIONS > 0.02) & (STATIONS < 0.96)]
    half, top = _deck_half_beam(u)[:, None] + 0.01, _sheer(u)[:, None] - DECK_DROP + 0.004
    planks = _frames(u, top - [0.02, 0, 0, 0.02], half * [-1, -1, 1, 1])

    u = STATIONS
    side = np.stack([_x(u), _sheer(u), (_half_beam(u) + _deck_half_beam(u)) / 2], 1)
    side = np.concatenate([side[:1] * [1, 1, -1], side])  # the two sides overlap at the stern
    knob = sphere(0.022).moved(_x(1), _sheer(1))
    gunwale = tube(side, 0.018), tube(side * [1, 1, -1], 0.018), knob
    oak = mix(WOOD, DARK_WOOD, stripes(X, 0.11, share=0.3))
    return [
        planks.painted(mix(WOOD, DARK_WOOD, stripes(Z, 0.05, share=0.22))),
        *(body.painted(oak) for body in gunwale),
    ]


def _frames(u, y, z):
    """Skin over cross-sections y, z (S, K) at the stations u (S,)."""
    return loft(np.stack([np.broadcast_to(_x(u)[:, None], z.shape), y, z], -1))


def _house():
    deck_house = box(0.36, 0.17, 0.19, corner=0.04, bevel=0.015).moved(0.05, -0.045)
    paint = mix(CREAM, ORANGE, band(Y, -0.12, -0.065))
    for x in (-0.06, 0.02, 0.10, 0.18):
        eye = (x, -0.01, 0.0)
        paint = mix(paint, YELLOW, spot(eye, 0.027, (1, 1, np.inf)))
        paint = mix(paint, GLASS, spot(eye, 0.018, (1, 1, np.inf)))

    wheel_house = box(0.20, 0.17, 0.155, corner=0.035, bevel=0.01).moved(0.10, 0.10)
    # Panes in the long sides are parted along x, those fore and aft along z.
    panes = both(band(Y, 0.085, 0.155), lambda points: np.maximum(
        stripes(X, 0.062, share=0.72, phase=0.39)(points) * (np.abs(points[:, 2]) > 0.0725),
        stripes(Z, 0.058, share=0.72, phase=0.5)(points) * (np.abs(points[:, 0] - 0.10) > 0.0925),
    ))
    glass = mix(GLASS, SKY, ramp(X + Y + Z, 0.1, 0.34))
    cladding = mix(WHITE, CREAM, stripes(Y, 0.03))

    roof = box(0.255, 0.036, 0.205, corner=0.05, bevel=0.016).moved(0.105, 0.195)
    lamp = sphere(0.035).painted(mix(STEEL, YELLOW, ramp(X, 0.0, 0.006)))
    life_ring = torus(0.045, 0.018).painted(mix(WHITE, ORANGE, sectors((0, 0, 0), 4)))
    return [
        deck_house.painted(paint),
        wheel_house.painted(mix(cladding, glass, panes)),
        roof.painted(mix(RED, WHITE, stripes(Z, 0.07, share=0.35))),
        lamp.moved(0.17, 0.235, 0.03),
        life_ring.moved(-0.045, -0.028, 0.098),
    ]


def _deck_gear():
    rim, bore = 0.057, 0.037
    funnel = revolve([
        (0, -0.11), (0.05, -0.11), (0.053, 0.12), (rim, 0.13), (rim, 0.155), (bore, 0.155),
        (bore, 0.13), (0, 0.13),
    ])
    rings = mix(mix(YELLOW, RED, band(Y, -0.005, 0.075)), WHITE, band(Y, 0.02, 0.05))
    funnel = funnel.painted(mix(rings, RUBBER, ramp(Y, 0.112, 0.118)))

    angle = np.linspace(0, np.pi, 40)
    side = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.5
    arch = tube(
        np.stack([np.zeros(40), 0.15 * np.sin(angle) ** 0.6, 0.105 * side], 1), 0.018, up=X
    )
    barrel = revolve([
        (0, -0.06), (0.036, -0.06), (0.045, -0.02), (0.045, 0.02), (0.036, 0.06), (0, 0.06),
    ])
    staves = mix(WOOD, STEEL, stripes(Y, 0.06, share=0.3, phase=0.5))
    crate = box(0.085, 0.085, 0.085, corner=0.008, bevel=0.008)
    boards = mix(GREEN, LIME, stripes(X + Y, 0.045, share=0.4))

    tyre = torus(0.036, 0.018).painted(mix(RUBBER, GREY, sectors((0, 0, 0), 6)))
    tyres = []
    for side, places in ((1, (0.30, 0.56)), (-1, (0.42,))):
        for u in places:
            tyres.append(tyre.moved(_x(u), _sheer(u) - 0.085, side * _side(u, 0.085)))
    return [
        funnel.turned("z", 8).moved(-0.075, 0.12),
        arch.painted(mix(YELLOW, RUBBER, stripes(Y + Z, 0.07, share=0.4))).moved(-0.215, -0.125),
        barrel.painted(staves).moved(-0.31, -0.032, 0.05),
        crate.painted(boards).turned("y", 25).moved(0.29, -0.012, -0.01),
        *tyres,
    ]


def _rigging():
    mast = revolve([(0.017, -0.13), (0.017, 0.11)], 32)
    s = np.linspace(0, 1, 40)
    flag = np.stack([-0.19 * s, 0.02 * np.sin(5 * s), 0.022 * np.sin(7 * s)], 1)
    cloth = tube(flag, np.stack([0.016 + 0 * s, 0.055 - 0.035 * s], 1))
    yard = tube([(0, 0, -0.075), (0, 0, 0.075)], 0.015)
    bulb = sphere(0.026)
    return [
        mast.painted(mix(WHITE, RED, stripes(Y, 0.08))).moved(0.05, 0.315),
        cloth.painted(mix(TEAL, YELLOW, stripes(X, 0.076, phase=0.2))).moved(0.05, 0.365),
        yard.painted(DARK_WOOD).moved(0.05, 0.275),
        bulb.painted(RED).moved(0.05, 0.275, -0.075),
        bulb.painted(GREEN).moved(0.05, 0.275, 0.075),
    ]
