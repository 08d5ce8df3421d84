"""YAML configuration: defaults, inheritance, command-line overrides, validation.

``configs/default.yaml`` names every key with its default and is the users' reference; the table
``KINDS`` says what a key accepts where the type of its default does not tell. Each file is checked
before it is merged, so that an error names the file and the line at fault.
"""

import difflib
import importlib
import json
import math
import re
from pathlib import Path
from typing import Callable, NamedTuple

import yaml

from im2mesh.errors import InputError
from im2mesh.files import atomic_path

DEFAULTS = Path(__file__).resolve().parent.parent / "configs" / "default.yaml"
METHODS = {"dvr": "im2mesh.dvr.config"}
ARGUMENTS_OF = {"model.decoder": "model.decoder_kwargs", "model.encoder": "model.encoder_kwargs"}


# ---- what a key accepts --------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of value: its name in messages, and a reader that raises ValueError on the rest."""

    wanted: str
    read: Callable


def _text(value):
    if not isinstance(value, str):
        raise ValueError
    return value


def _flag(value):
    if not isinstance(value, bool):
        raise ValueError
    return value


def _with_numbers(value):
    """Turn texts such as ``1e-4``, which YAML 1.1 does not take for numbers, into numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value


def _arguments(value):
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError
    return _with_numbers(value)


def _number(wanted="a number >= 0", fits=lambda number: number >= 0):
    def read(value):
        value = _with_numbers(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError
        if not (math.isfinite(value) and fits(value)):
            raise ValueError
        return value

    return Kind(wanted, read)


def _whole(low):
    number = _number(fits=lambda value: value >= low and value == int(value))
    return Kind(f"a whole number >= {low}", lambda value: int(number.read(value)))


def _choice(*values):
    def read(value):
        if type(value) is not type(values[0]) or value not in values:
            raise ValueError
        return value

    return Kind(" or ".join(map(str, values)), read)


def _mesh_extension(value):
    return "off" if value is False else _choice("ply", "off", "obj").read(value)


def _or_null(kind):
    return Kind(
        f"{kind.wanted}, or null", lambda value: None if value is None else kind.read(value)
    )


def _list_of(kind, wanted, fits=lambda values: True):
    def read(value):
        if not isinstance(value, list):
            raise ValueError
        values = [kind.read(item) for item in value]
        if not fits(values):
            raise ValueError
        return values

    return Kind(wanted, read)


def _range_of(kind, wanted):
    return _list_of(kind, wanted, lambda ends: len(ends) == 2 and ends[0] < ends[1])


def _or_list(kind, several):
    return Kind(
        f"{kind.wanted}, or {several.wanted}",
        lambda value: (several if isinstance(value, list) else kind).read(value),
    )


TEXT = Kind("text (a name that looks like a number needs quotes)", _text)
ARGUMENTS = Kind("a mapping of argument names to values", _arguments)
COUNT = _whole(1)
POSITIVE = _number("a number > 0", lambda number: number > 0)
SIZE = _list_of(COUNT, "[height, width]", lambda sizes: len(sizes) == 2)
PICTURE = _choice("rgb", "depth", "normal")

KIND_OF_DEFAULT = {
    str: TEXT,
    bool: Kind("true or false", _flag),
    int: _whole(0),
    float: _number(),
}

KINDS = {
    "method": _choice(*METHODS),
    "data.dataset_name": _choice("Shapes3D", "NMR", "DTU", "images"),
    "data.classes": _or_null(_list_of(TEXT, "a list of folder names (digits need quotes)", bool)),
    "data.input_type": _or_null(_choice("image", "idx")),
    "data.dim": _choice(3),
    "data.img_size": _or_null(_or_list(COUNT, SIZE)),
    "data.img_size_input": _or_null(COUNT),
    "data.train_split": _or_null(TEXT),
    "data.val_split": _or_null(TEXT),
    "data.test_split": _or_null(TEXT),
    "data.depth_range": _range_of(_number(), "[near, far] with 0 <= near < far"),
    "data.ignore_image_idx": _list_of(_whole(0), "a list of whole numbers >= 0"),
    "model.encoder": _or_null(TEXT),
    "model.decoder_kwargs": ARGUMENTS,
    "model.encoder_kwargs": ARGUMENTS,
    "model.depth_function_kwargs": ARGUMENTS,
    "model.reduction_method": _choice("sum", "mean"),
    "model.normal_neighborhood": POSITIVE,
    "model.min_slope": POSITIVE,
    "model.patch_size": COUNT,
    "training.batch_size": COUNT,
    "training.batch_size_val": COUNT,
    "training.learning_rate": POSITIVE,
    "training.scheduler": _choice("milestones", "cosine"),
    "training.coarse_to_fine": _number("a number from 0 to 1", lambda share: 0 <= share <= 1),
    "training.pixels_near_mask": _or_null(_whole(0)),
    "training.occupancy_points": _choice("random", "closest"),
    "training.scheduler_milestones": _list_of(
        COUNT, "a list of ascending whole numbers >= 1", lambda epochs: epochs == sorted(epochs)
    ),
    "training.scheduler_gamma": POSITIVE,
    "training.model_selection_mode": _choice("minimize", "maximize"),
    "training.n_training_points": COUNT,
    "training.n_compared_patches": COUNT,
    "training.n_eval_points": COUNT,
    "training.gradient_clip": _or_null(POSITIVE),
    "training.max_iterations": _or_null(COUNT),
    "training.precision": _choice("float32", "bfloat16"),
    "test.threshold": _number("a number between 0 and 1", lambda number: 0 < number < 1),
    "generation.batch_size": COUNT,
    "generation.simplify_nfaces": _or_null(COUNT),
    "generation.resolution_0": COUNT,
    "generation.smallest_part": _number("a number from 0 to 1", lambda share: 0 <= share <= 1),
    "generation.refine_max_faces": COUNT,
    # YAML 1.1 takes a bare off for false
    "generation.mesh_extension": Kind("ply or off or obj", _mesh_extension),
    "rendering.colors": _or_list(PICTURE, _list_of(PICTURE, "a list of them", bool)),
    "rendering.resolution": _or_null(SIZE),
    "rendering.turntable_axis": _or_null(
        _list_of(
            _number("a number", lambda number: True),
            "[x, y, z], not all 0",
            lambda axis: len(axis) == 3 and any(axis),
        )
    ),
    "rendering.ray_sampling_accuracy": _range_of(
        _whole(2), "[low, high], whole numbers with 2 <= low < high"
    ),
    "rendering.extension": _choice("jpg", "png"),
    "rendering.background": _choice("white", "black"),
    "rendering.trajectory": _choice("dataset", "turntable"),
    "rendering.turntable_elevation": _number(
        "a number between -90 and 90 (degrees)", lambda degrees: -90 < degrees < 90
    ),
    "rendering.fps": POSITIVE,
}


# ---- reading -------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """One source of values: the tree it holds, its name, and where in it each key stands."""

    tree: dict
    name: str
    places: dict  # dotted key -> "file, line 3"

    def place(self, key):
        return self.places.get(key, self.name)


def _read_file(path):
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as err:
        raise InputError(f"cannot read the config {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise InputError(f"cannot read the config {path}: it is not UTF-8 text") from err
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else path
        raise InputError(f"{place}: not valid YAML: {getattr(err, 'problem', err)}") from err
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a config is a mapping of sections, not {_shown(tree)}")
    return Layer(tree, str(path), dict(_places(root, path)))


def _places(node, path, prefix=""):
    """Yield (dotted key, "file, line n") of a node; a key given twice is an error."""
    seen = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in seen:
            raise InputError(f"{path}, line {line}: {name} is given twice (also line {seen[name]})")
        seen[name] = line
        yield name, f"{path}, line {line}"
        if not prefix:
            yield from _places(value, path, f"{name}.")


def _read_override(override):
    key, equals, text = override.partition("=")
    name = f"--set {override}"
    if not (key.strip() and equals):
        raise InputError(f"{name}: write --set section.key=value")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise InputError(f"{name}: {text!r} is not valid YAML") from err
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    return Layer(tree, name, {})


def _read_overrides(overrides):
    """Their layers in order, but a choice comes before arguments, which may be meant for it."""
    layers = [_read_override(override) for override in overrides]
    return sorted(layers, key=lambda layer: not any(_sets(layer, choice) for choice in ARGUMENTS_OF))


def _sets(layer, key):
    section, _, name = key.partition(".")
    values = layer.tree.get(section)
    return isinstance(values, dict) and name in values


def _file_layers(path, heirs=()):
    """The layer of a config file, after those it inherits from."""
    path = Path(path)
    line = (*heirs, path)
    if path.resolve() in (heir.resolve() for heir in heirs):
        circle = " -> ".join(map(str, line))
        raise InputError(f"{heirs[-1]}: inherit_from goes in a circle: {circle}")
    layer = _read_file(path)
    if "inherit_from" not in layer.tree:
        return [layer]
    parent = layer.tree.pop("inherit_from")
    place = layer.place("inherit_from")
    if not isinstance(parent, str):
        raise InputError(f"{place}: inherit_from must be a path, not {_shown(parent)}")
    # Beside the file first: what happens to lie in the working directory must not take its place.
    candidates = [path.parent / parent, Path(parent)]
    for candidate in candidates:
        if candidate.is_file():
            return [*_file_layers(candidate, line), layer]
    tried = " and ".join(map(str, dict.fromkeys(candidates)))
    raise InputError(f"{place}: inherit_from names a file that does not exist; tried {tried}")


# ---- checking and merging ------------------------------------------------------------------------


def _shown(value):
    return json.dumps(value, default=str)


def _leaves(layer, sections):
    """Yield (dotted key, value) of all keys of a layer."""
    for name, value in layer.tree.items():
        if name not in sections:
            yield str(name), value
        elif isinstance(value, dict):
            for key, item in value.items():
                yield f"{name}.{key}", item
        else:
            raise InputError(
                f"{layer.place(name)}: {name} is a section and must hold keys, not {_shown(value)}"
            )


def _advice(key, known):
    """How to go on from an unknown dotted key: the nearest known one, or all that there are."""
    section, _, name = key.rpartition(".")
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    if elsewhere:
        return f"the key exists as {' and '.join(elsewhere)}"
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    if not section:
        siblings += dict.fromkeys(other.partition(".")[0] for other in known if "." in other)
    for candidates in (siblings, known):
        names = {other.rpartition(".")[2]: other for other in candidates}
        near = difflib.get_close_matches(name, names, n=1)
        if near:
            return f"did you mean {names[near[0]]}?"
    return f"known keys: {', '.join(siblings)}"


def _merged(old, new):
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def load_config(path, overrides=()):
    """Read a config: the defaults, then the files it inherits from, then itself, then overrides.

    Parameters
    ----------
    path : str or Path
        A YAML file. ``inherit_from`` in it is a path relative to that file or to the working
        directory. Mappings merge, everything else replaces; the arguments of a decoder or an encoder
        are dropped where another one is chosen.
    overrides : iterable of str
        ``"section.key=value"`` with YAML values, as given to ``--set``.

    Returns
    -------
    dict
        ``{"method": ..., section: {key: value}}`` with every key of ``configs/default.yaml``.

    Raises
    ------
    InputError
        For a file that is missing or not YAML, an inheritance cycle, an unknown or repeated key, a
        value of the wrong kind, or values that contradict each other. The message names file,
        line and key.
    """
    default = _read_file(DEFAULTS)
    sections = {name for name, value in default.tree.items() if isinstance(value, dict)}
    known = {
        key: KINDS[key] if key in KINDS else KIND_OF_DEFAULT[type(value)]
        for key, value in _leaves(default, sections)
    }
    values, places = {}, {}
    for layer in [default, *_file_layers(path), *_read_overrides(overrides)]:
        leaves = dict(_leaves(layer, sections))
        for choice, arguments in ARGUMENTS_OF.items():
            if choice in values and leaves.get(choice, values[choice]) != values[choice]:
                values[arguments] = {}
        for key, value in leaves.items():
            place = layer.place(key)
            if key not in known:
                raise InputError(f"{place}: unknown key {key}; {_advice(key, list(known))}")
            try:
                value = known[key].read(value)
            except (ValueError, OverflowError):
                raise InputError(
                    f"{place}: {key} must be {known[key].wanted}, not {_shown(value)}"
                ) from None
            values[key], places[key] = _merged(values.get(key), value), place
    _check_relations(values, places)
    config = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (config.setdefault(section, {}) if section else config)[name] = value
    return config


def _check_relations(values, places):
    def fail(key, cause):
        raise InputError(f"{places[key]}: {key} is {_shown(values[key])}, but {cause}")

    patch, points = values["model.patch_size"], values["training.n_training_points"]
    if patch**2 > points:
        fail(
            "model.patch_size",
            f"a patch of {patch}x{patch} pixels needs training.n_training_points >= {patch**2}, "
            f"which is {points} ({places['training.n_training_points']})",
        )
    if values["model.lambda_image_gradients"] > 0 and patch < 2:
        fail("model.lambda_image_gradients", "image gradients need model.patch_size >= 2")
    if values["training.max_iterations"] is None:
        end = "the end of the training must be known: set training.max_iterations"
        if values["training.scheduler"] == "cosine":
            fail("training.scheduler", end)
        if values["training.coarse_to_fine"] > 0:
            fail("training.coarse_to_fine", end)
    if values["training.hull_iterations"] > 0 and not values["model.visual_hull"]:
        fail("training.hull_iterations", "there is no hull to start from: set model.visual_hull=true, or 0")
    for key, what in (
        ("model.lambda_unseen", "what rays pass through is noted for"),
        ("model.lambda_patch", "views are compared of"),
        ("model.lambda_silhouettes", "views are compared of"),
        ("training.n_surrounding_rays", "such rays are cast around"),
    ):
        if values[key] > 0 and values["model.encoder"] is not None:
            fail(key, f"{what} one object only: set 0, or model.encoder=null")
    for key in ("model.lambda_patch", "model.lambda_silhouettes"):
        if values[key] > 0 and not values["data.split_model_for_images"]:
            fail(
                key, "views are compared where each is an item: set data.split_model_for_images=true, or 0"
            )
    color_head = values["model.decoder_kwargs"].get("color_head")
    if color_head and not values["data.img_with_camera"]:
        fail(
            "data.img_with_camera",
            "colours that depend on the direction of view need cameras: set true, or "
            "model.decoder_kwargs.color_head to false",
        )
    if color_head and values["data.dataset_name"] == "images":
        fail(
            "data.dataset_name",
            "a folder of images has no cameras, which model.decoder_kwargs.color_head needs: set it to false",
        )


# ---- use -----------------------------------------------------------------------------------------


def save_config(config, path):
    """Write a config in full, such that ``load_config(path)`` gives it back."""
    with atomic_path(path) as temporary:
        text = yaml.safe_dump(config, sort_keys=False)
        temporary.write_text(f"# Every key as it was used.\n{text}", encoding="utf-8")


def method_module(config):
    """The module with the factories of ``config["method"]``, imported when first asked for."""
    return importlib.import_module(METHODS[config["method"]])
