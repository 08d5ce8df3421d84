"""Random choices, and colours that go well together, by what they are painted on."""

from im2mesh.synthetic.shapes import mix, solid, stripes

WOODS = ("#c98f52", "#a8703a", "#7d4f2a", "#dcb57e", "#5b3a24", "#b9814f", "#e2c491")
FABRICS = (
    "#c8372d", "#2f8f9d", "#ef7d22", "#3f6fb5", "#7a9e54", "#f4b92e", "#8d5a97", "#d9707f",
    "#3d4a66", "#b8b2a6", "#e9dcc3", "#4f7f6c", "#a14a3b", "#5fa8d3",
)
PAINTS = (
    "#c8372d", "#2a6fbb", "#f2b632", "#ece8dc", "#3a9a6a", "#ef7d22", "#27465f", "#9aa5ad",
    "#6fb7d6", "#7b4a8e", "#4b4f57", "#d9577a", "#8fbf4d", "#2f8f9d",
)
METALS = ("#8d939b", "#5a5f68", "#b9bec4", "#3c3f46", "#c2a15a")
LAMPSHADES = ("#f3e6c8", "#f2c76b", "#e58f6c", "#9fd3e6", "#c8372d", "#7fae8a", "#d8c3e0")
RUBBER, SOOT, GLASS, WHITE, CREAM = map(
    solid, ("#2e2f35", "#35353d", "#2b5d86", "#fbf7ee", "#f3e6c8")
)


def chance(rng, probability):
    return rng.random() < probability


def choose(rng, **weights):
    """One of the names, drawn in proportion to their weights."""
    total = sum(weights.values())
    return rng.choice(list(weights), p=[weight / total for weight in weights.values()])


def colour(rng, codes):
    """A solid colour out of ``codes``."""
    return solid(codes[rng.integers(len(codes))])


def two_colours(rng, codes):
    """Two different ones."""
    return [solid(codes[i]) for i in rng.choice(len(codes), 2, replace=False)]


def wood(rng, direction):
    """A wood, its grain seen as soft stripes that follow one another along ``direction``."""
    base = colour(rng, WOODS)
    grain = stripes(direction, rng.uniform(0.08, 0.14), 0.4, rng.random())
    return mix(base, lambda points: 0.9 * base(points), grain)
