"""The toy tugboat: bow along +x, mast along +y, starboard along +z.

It is chunky, like a bath toy: a small network learns its shape within minutes.
"""

import numpy as np

from im2mesh.synthetic.shapes import (
    band, both, box, loft, mix, ramp, revolve, sectors, solid, sphere, spot, stripes, torus, tube,
)

X, Y, Z = np.eye(3)
RED, DARK_RED, ORANGE, YELLOW = map(solid, ("#c8372d", "#9a2730", "#ef7d22", "#f4b92e"))
SKY, TEAL, GLASS, NAVY = map(solid, ("#9fd3e6", "#2f8f9d", "#2b5d86", "#1f3f78"))
WHITE, CREAM, WOOD, DARK_WOOD = map(solid, ("#fbf7ee", "#f3e6c8", "#c98f52", "#9c6a38"))
SOOT = solid("#35353d")


def tugboat():
    """Parts of the boat, all within 0.45 of the origin along every axis."""
    return [*_hull(), *_house(), _funnel(), _bollard(), *_mast()]


# ---------------------------------------------------------------- hull
# Its lines are functions of u, which runs from 0 at the stern to 1 at the bow.

LENGTH, WIDEST, FULLNESS = 0.86, 0.4, 2.4


def _fore(u):
    return np.clip((u - WIDEST) / (1 - WIDEST), 0, 1)


def _aft(u):
    return np.clip((WIDEST - u) / WIDEST, 0, 1)


def _half_beam(u):
    return 0.25 * np.sqrt((1 - _aft(u) ** 2.6) * (1 - _fore(u) ** 1.6))


def _deck_height(u):
    return -0.12 + 0.05 * _aft(u) ** 2 + 0.12 * _fore(u) ** 2


def _keel(u):
    return -0.42 + 0.14 * _aft(u) ** 2.5 + 0.20 * _fore(u) ** 2.5


def _on_deck(points):
    return (points[:, 1] > _deck_height(points[:, 0] / LENGTH + 0.5) - 0.004).astype(float)


def _hull():
    u = (1 - np.cos(np.linspace(0, np.pi, 90))) / 2  # crowded at the rounded ends
    x, half_beam, deck = LENGTH * (u - 0.5), _half_beam(u), _deck_height(u)

    t = np.linspace(0, np.pi, 49)
    z = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** (2 / FULLNESS) * half_beam[:, None]
    y = deck[:, None] - np.sin(t) ** (2 / FULLNESS) * (deck - _keel(u))[:, None]
    body = loft(np.stack([np.broadcast_to(x[:, None], z.shape), y, z], -1))

    side = np.stack([0.935 * x, deck + 0.015, 0.87 * half_beam], 1)
    bulwark = tube(np.concatenate([side, side[-2:0:-1] * [1, 1, -1]]), (0.036, 0.045), closed=True)

    topsides = mix(NAVY, TEAL, ramp(X, -0.35, 0.40))
    for eye in (-0.2, -0.04, 0.12):
        topsides = mix(topsides, YELLOW, spot((eye, -0.155, 0), 0.037, (1, 1, np.inf)))
        topsides = mix(topsides, SKY, spot((eye, -0.155, 0), 0.024, (1, 1, np.inf)))
    bottom = mix(RED, DARK_RED, stripes(X, 0.2))
    paint = mix(mix(topsides, bottom, ramp(-Y, 0.247, 0.253)), WHITE, band(Y, -0.25, -0.215))
    planks = mix(WOOD, DARK_WOOD, stripes(Z, 0.1))
    return [
        body.painted(mix(paint, planks, _on_deck)),
        bulwark.painted(mix(ORANGE, YELLOW, stripes(X, 0.17))),
    ]


# ---------------------------------------------------------------- on deck


def _house():
    deck_house = box(0.40, 0.17, 0.23, corner=0.11, bevel=0.035).moved(0.03, -0.09)
    deck_paint = mix(CREAM, TEAL, band(Y, -0.2, -0.065))

    wheel_house = box(0.21, 0.24, 0.19, corner=0.06, bevel=0.01).moved(0.105, 0.075)
    # Panes in the long sides are parted along x, those fore and aft along z.
    panes = both(band(Y, 0.085, 0.16), lambda points: np.where(
        np.abs(points[:, 2]) > 0.075,
        stripes(X, 0.085, share=0.68, phase=0.265)(points),
        stripes(Z, 0.085, share=0.68, phase=0.5)(points),
    ))
    glass = mix(GLASS, SKY, ramp(X + Y + Z, 0.1, 0.34))
    roof = box(0.27, 0.06, 0.26, corner=0.09, bevel=0.028).moved(0.115, 0.21)
    life_ring = torus(0.052, 0.028).painted(mix(WHITE, ORANGE, sectors((0, 0, 0), 2)))
    return [
        deck_house.painted(deck_paint),
        wheel_house.painted(mix(WHITE, glass, panes)),
        roof.painted(mix(RED, WHITE, stripes(Z, 0.13, share=0.35, phase=0.5))),
        life_ring.moved(0.065, 0.06, 0.1),
    ]


def _funnel():
    rim = np.radians(np.linspace(0, 90, 7))
    edge = np.stack([0.05 + 0.03 * np.cos(rim), 0.12 + 0.03 * np.sin(rim)], 1)
    funnel = revolve([(0, -0.2), (0.072, -0.2), *edge, (0, 0.15)])
    rings = mix(mix(YELLOW, RED, band(Y, -0.01, 0.1)), WHITE, band(Y, 0.025, 0.065))
    return funnel.painted(mix(rings, SOOT, ramp(Y, 0.1, 0.106))).turned("z", 12).moved(-0.12, 0.10)


def _bollard():
    dome = np.radians(np.linspace(0, 90, 13))
    dome = np.stack([0.046 * np.cos(dome), 0.046 * np.sin(dome)], 1)
    bollard = revolve([(0, -0.1), (0.046, -0.1), *dome])
    return bollard.painted(mix(SOOT, YELLOW, ramp(Y, -0.003, 0.003))).moved(-0.28, -0.04, 0.03)


def _mast():
    mast = revolve([(0.025, -0.12), (0.025, 0.11)], 48)
    s = np.linspace(0, 1, 40)
    flag = np.stack([-0.19 * s, 0 * s, 0.02 * np.sin(5.5 * s)], 1)
    cloth = tube(flag, (0.022, 0.06))
    return [
        mast.painted(mix(WHITE, RED, stripes(Y, 0.1))).moved(0.12, 0.315),
        sphere(0.036).painted(RED).moved(0.12, 0.413),
        cloth.painted(mix(TEAL, YELLOW, stripes(X, 0.1))).turned("y", 20).moved(0.12, 0.335),
    ]
