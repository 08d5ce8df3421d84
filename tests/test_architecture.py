"""The floors of the house: imports point one way, and some calls are made nowhere."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Ground floor first. A module imports only from lower floors; the modules of a room (a package)
# may import each other as well, though not in a circle.
FLOORS = (
    {"im2mesh.errors"},
    {"im2mesh.files", "im2mesh.geometry", "im2mesh.layers", "im2mesh.ext"},
    {"im2mesh.checkpoints", "im2mesh.visual_hull"},
    {
        "im2mesh.data",
        "im2mesh.encoder",
        "im2mesh.eval",
        "im2mesh.eval_report",
        "im2mesh.meshing",
        "im2mesh.synthetic",
        "im2mesh.dvr.field",
        "im2mesh.dvr.bounds",
        "im2mesh.dvr.implicit",
        "im2mesh.dvr.losses",
        "im2mesh.dvr.raymarch",
        "im2mesh.dvr.sampling",
        "im2mesh.dvr.support",
    },
    {"im2mesh.dvr.fields"},
    {
        "im2mesh.dvr.model", "im2mesh.dvr.visibility", "im2mesh.dvr.patches", "im2mesh.dvr.silhouettes",
    },
    {"im2mesh.dvr.generation", "im2mesh.dvr.rendering", "im2mesh.dvr.training"},
    {"im2mesh.dvr.config"},
    {"im2mesh.config"},
    {"im2mesh.cli", "im2mesh.commands"},
    {"train", "generate", "render", "eval_meshes", "setup", "scripts", "benchmarks"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TOP_LEVEL = {room.partition(".")[0] for room in FLOOR_OF}


def sources():
    """Module name -> path of every Python file of the project but the tests."""
    paths = list(ROOT.glob("*.py"))
    for folder in ("im2mesh", "scripts", "benchmarks"):
        paths += (ROOT / folder).rglob("*.py")
    return {module_name(path.relative_to(ROOT)): path for path in sorted(paths)}


def module_name(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    """The room a module is in, or None."""
    while module and module not in FLOOR_OF:
        module = module.rpartition(".")[0]
    return module or None


def imports(code, module, is_package, known):
    """The modules of the project that a module's code imports, at any place in it."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join(parts + ([base] if base else []))
            for alias in node.names:
                member = f"{base}.{alias.name}"
                found.add(member if member in known else base)
    return {name for name in found if name.partition(".")[0] in TOP_LEVEL}


def climbs(module, imported):
    """Why a module may not import another one, or None if it may."""
    room, other = room_of(module), room_of(imported)
    if other is None:
        return f"{module} imports {imported}, which is on no floor"
    if room == other:
        return None
    if FLOOR_OF[other] >= FLOOR_OF[room]:
        return f"{module} (floor {FLOOR_OF[room]}) imports {imported} (floor {FLOOR_OF[other]})"
    if other == "im2mesh.ext" and imported != other:
        return f"{module} imports {imported}: im2mesh.ext is the only door to it"
    return None


def forbidden(code):
    """The places of code that do what no file may do."""
    faults = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append((node.lineno, "bare except"))
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if function == "torch.load" and keywords.get("weights_only") != "True":
            faults.append((node.lineno, "torch.load without weights_only=True"))
        if function in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            faults.append((node.lineno, "np.load without allow_pickle=False"))
        if function in UNSAFE:
            faults.append((node.lineno, function))
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            faults.append((node.lineno, ".cuda(): make tensors on their input's device"))
    return faults


def insides_of_a_field(code):
    """The places of code that name what only the fields may know of themselves.

    By an import, as an attribute or in the text of a parameter's name. What a module has of its own,
    ``self.fc_out``, is no field's.
    """
    faults = []
    for node in ast.walk(ast.parse(code)):
        name = ""
        if isinstance(node, ast.alias):
            name = node.name
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            name = node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(".")[0]
        if name in INSIDES:
            faults.append((node.lineno, name))
    return faults


INSIDES = {"fc_p", "blocks", "fc_out", "ResidualEvaluation"}
UNSAFE = {
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "pickle.load",
    "pickle.loads",
    "eval",
    "exec",
}


@pytest.fixture(scope="module")
def graph():
    """Module -> the modules of the project that it imports."""
    modules = sources()
    return {
        module: imports(path.read_text(), module, path.name == "__init__.py", modules)
        for module, path in modules.items()
    }


def test_every_module_is_on_a_floor_and_every_room_exists(graph):
    homeless = {module: graph[module] for module in graph if room_of(module) is None}
    assert homeless == {"im2mesh": set(), "im2mesh.dvr": set()}  # mere folders of rooms
    assert set(FLOOR_OF) == {room_of(module) for module in graph} - {None}


def test_imports_point_to_lower_floors(graph):
    faults = [
        climbs(module, imported)
        for module, imported_modules in graph.items()
        if room_of(module)
        for imported in imported_modules
    ]
    assert [fault for fault in faults if fault] == []


def test_no_circles(graph):
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_file_does_what_none_may_do():
    faults = {
        str(path.relative_to(ROOT)): forbidden(path.read_text()) for path in sources().values()
    }
    assert {path: found for path, found in faults.items() if found} == {}


def test_only_fields_know_what_they_are_made_of():
    faults = {
        module: insides_of_a_field(path.read_text())
        for module, path in sources().items()
        if module.startswith("im2mesh.") and room_of(module) != "im2mesh.dvr.fields"
    }
    assert {module: found for module, found in faults.items() if found} == {}


# ---- the checks themselves -----------------------------------------------------------------------


def test_imports_are_found_in_all_their_forms():
    known = {"im2mesh", "im2mesh.geometry", "im2mesh.dvr", "im2mesh.dvr.losses", "im2mesh.files"}
    code = """
import torch, im2mesh.errors
from im2mesh import geometry
from im2mesh.files import atomic_path
from . import losses
from .raymarch import march
from ..ext import MISE
def later():
    import im2mesh.cli
"""
    assert imports(code, "im2mesh.dvr.model", False, known) == {
        "im2mesh.errors",
        "im2mesh.geometry",
        "im2mesh.files",
        "im2mesh.dvr.losses",
        "im2mesh.dvr.raymarch",
        "im2mesh.ext",
        "im2mesh.cli",
    }
    assert imports("from .core import a", "im2mesh.data", True, known) == {"im2mesh.data.core"}


@pytest.mark.parametrize(
    "module, imported",
    [
        ("im2mesh.geometry", "im2mesh.dvr.model"),
        ("im2mesh.dvr.model", "im2mesh.config"),
        ("im2mesh.dvr.raymarch", "im2mesh.dvr.fields.simple"),
        ("im2mesh.dvr.training", "im2mesh.dvr.generation"),
        ("im2mesh.meshing", "im2mesh.data.core"),
        ("im2mesh.meshing", "im2mesh.ext.mise"),
        ("im2mesh.config", "train"),
        ("im2mesh.cli", "im2mesh.attic"),
    ],
)
def test_a_climb_is_seen(module, imported):
    assert climbs(module, imported)


@pytest.mark.parametrize(
    "module, imported",
    [
        ("im2mesh.dvr.model", "im2mesh.dvr.fields.simple"),
        ("im2mesh.data.core", "im2mesh.data.loading"),
        ("im2mesh.ext", "im2mesh.ext.mise"),
        ("im2mesh.meshing", "im2mesh.ext"),
        ("scripts.any", "im2mesh.synthetic"),
    ],
)
def test_a_step_down_is_free(module, imported):
    assert climbs(module, imported) is None


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    a()\nexcept:\n    pass",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "pickle.load(file)",
        "exec(text)",
        "model.cuda()",
    ],
)
def test_what_no_file_may_do_is_seen(code):
    assert len(forbidden(code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "model.eval()",
        "torch.cuda.is_available()",
        "try:\n    a()\nexcept ValueError:\n    pass",
    ],
)
def test_the_safe_forms_are_free(code):
    assert forbidden(code) == []


@pytest.mark.parametrize(
    "code",
    [
        "weight = model.decoder.fc_p.weight",
        "for block in decoder.blocks:\n    pass",
        "fields.simple.ResidualEvaluation",
        "from im2mesh.dvr.fields.simple import ResidualEvaluation",
        "getattr(decoder, 'fc_out')",
        "state['blocks.0.fc_0.weight']",
    ],
)
def test_the_insides_of_a_field_are_seen(code):
    assert len(insides_of_a_field(code)) == 1


@pytest.mark.parametrize(
    "code",
    ["self.fc_out = nn.Linear(3, 1)", "blocks = range(3)", "'Rays in blocks.'", "decoder.evaluate(p)"],
)
def test_what_a_module_has_of_its_own_is_free(code):
    assert insides_of_a_field(code) == []
