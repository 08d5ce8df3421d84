"""Pins, package metadata, and the scripts that set everything up."""

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh")) + [ROOT / ".ci" / "run"]

# What the modules are called that do not carry the name of their package.
PACKAGE_OF = {
    "Imath": "openexr",
    "PIL": "pillow",
    "mcubes": "pymcubes",
    "yaml": "pyyaml",
    "fast_simplification": "fast-simplification",
}


def pins():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def project():
    return read_configuration(ROOT / "pyproject.toml")["project"]


def names(requirements):
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def imported_packages(paths):
    """The third-party packages that files import, at any place in them."""
    modules = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.partition(".")[0])
    ours = {path.stem for path in ROOT.iterdir()}
    third_party = modules - set(sys.stdlib_module_names) - ours
    return {canonicalize_name(PACKAGE_OF.get(module, module)) for module in third_party}


# ---- requirements --------------------------------------------------------------------------------


def test_requirements_pin_one_version_each_and_torch_comes_first():
    assert pins()[0] == "torch==2.13.0"
    for line in pins():
        specifiers = list(Requirement(line).specifier)
        assert [specifier.operator for specifier in specifiers] == ["=="], line


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_python_gets_exactly_one_version_of_every_package(python):
    environment = {"python_version": python}
    requirements = [Requirement(line) for line in pins()]
    chosen = [
        canonicalize_name(requirement.name)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(environment)
    ]
    assert sorted(chosen) == sorted(names(pins()))


def test_conda_environment_has_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == pins()


def test_every_pin_lies_in_the_range_of_pyproject():
    metadata = project()
    ranges = metadata["dependencies"] + sum(metadata["optional-dependencies"].values(), [])
    assert names(ranges) == names(pins())
    specifiers = {canonicalize_name(Requirement(line).name): Requirement(line) for line in ranges}
    for pin in map(Requirement, pins()):
        (version,) = [specifier.version for specifier in pin.specifier]
        assert specifiers[canonicalize_name(pin.name)].specifier.contains(version), pin


def test_dependencies_are_what_the_code_imports():
    metadata = project()
    needed = names(metadata["dependencies"])
    code = [path for folder in ("im2mesh", "scripts") for path in (ROOT / folder).rglob("*.py")]
    code += [path for path in ROOT.glob("*.py") if path.name != "setup.py"]
    benchmarks = list((ROOT / "benchmarks").rglob("*.py"))
    assert imported_packages(code) <= needed
    needed |= names(metadata["optional-dependencies"]["benchmarks"])
    assert imported_packages(code + benchmarks) == needed


def test_project_metadata():
    metadata = project()
    assert metadata["name"] == "im2mesh" and metadata["license"] == "MIT"
    assert metadata["requires-python"] == ">=3.10"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 im2mesh")


# ---- scripts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script):
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", script], check=True)


def test_ci_runs_the_tests_and_nothing_else():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines == ["#!/usr/bin/env bash", 'exec bash "$(dirname "$0")/../scripts/test.sh"']


def test_git_ignores_what_is_made():
    made = [
        ".venv/x", "out/x", "data/x", "build/x", "im2mesh/ext/mise.cpp", "im2mesh/ext/mise.c",
        "im2mesh/ext/mise.so", "im2mesh/__pycache__/x", "im2mesh.egg-info/x", ".pytest_cache/x",
    ]  # fmt: skip
    kept = ["im2mesh/data/core.py", "im2mesh/ext/mise.pyx", "media/x.png", "configs/default.yaml"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    told = subprocess.run(
        ["git", "check-ignore", "--no-index", *made, *kept],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert told == made


# A stand-in for python3 and for the interpreter of .venv: notes its arguments, and does of each
# call only what leaves a trace.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
    *sys.version_info*) exit "${TOO_OLD:-0}" ;;
    *EXT_SUFFIX*) echo .fake.so ;;
    *get_path*) echo "$INCLUDE" ;;
    "-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    "-m pip install"*) exit "${PIP_FAILS:-0}" ;;
    *build_ext*) for pyx in im2mesh/ext/*.pyx; do touch "${pyx%.pyx}.fake.so"; done ;;
    --version) echo "Python 3.x" ;;
esac
"""


@pytest.fixture
def setup_env(tmp_path):
    """Run setup_env.sh in a copy of the project; give its result and the calls of python."""
    root = tmp_path / "a project"
    (root / "im2mesh" / "ext").mkdir(parents=True)
    (root / "im2mesh" / "ext" / "mise.pyx").touch()
    (root / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup_env.sh", root / "scripts")
    (root / "requirements.txt").write_text("# pins\ntorch==1.2.3\nnumpy==4.5.6\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(FAKE_PYTHON)
    (tmp_path / "bin" / "python3").chmod(0o755)
    (tmp_path / "Python.h").touch()
    calls = tmp_path / "calls"

    def run(**variables):
        calls.write_text("")
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "INCLUDE": str(tmp_path),
            "CXX": "true",
            **variables,
        }
        result = subprocess.run(
            ["bash", root / "scripts" / "setup_env.sh"],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        return result, calls.read_text().splitlines()

    run.root = root
    return run


def pip_calls(calls):
    return [re.sub(".*check ", "", call) for call in calls if call.startswith("-m pip install")]


def test_set_up_installs_torch_first_compiles_and_is_then_at_rest(setup_env):
    result, calls = setup_env()
    assert result.returncode == 0, result.stderr
    assert "-m venv --clear .venv" in calls
    assert pip_calls(calls) == ["torch==1.2.3", "-r requirements.txt"]
    assert calls[-1] == "setup.py --quiet build_ext --inplace"

    result, calls = setup_env()
    assert result.returncode == 0 and result.stdout == ""
    assert pip_calls(calls) == []
    assert not [call for call in calls if "venv" in call or "setup.py" in call]


def test_set_up_follows_requirements_and_sources(setup_env):
    setup_env()
    (setup_env.root / "requirements.txt").write_text("torch==1.2.4\n")
    _, calls = setup_env()
    assert pip_calls(calls) == ["torch==1.2.4", "-r requirements.txt"]
    assert not [call for call in calls if "setup.py" in call]

    compiled = setup_env.root / "im2mesh" / "ext" / "mise.fake.so"
    os.utime(compiled, (1, 1))
    _, calls = setup_env()
    assert pip_calls(calls) == [] and "setup.py --quiet build_ext --inplace" in calls


def test_set_up_tries_again_after_a_failed_install(setup_env):
    result, _ = setup_env(PIP_FAILS="1")
    assert result.returncode == 1 and "error: pip could not install" in result.stderr
    result, calls = setup_env()
    assert result.returncode == 0 and len(pip_calls(calls)) == 2
    assert "-m venv --clear .venv" not in calls


def test_set_up_replaces_a_broken_environment(setup_env):
    setup_env()
    python = setup_env.root / ".venv" / "bin" / "python"
    python.write_text("#!/no/such/interpreter\n")
    result, calls = setup_env()
    assert result.returncode == 0, result.stderr
    assert "-m venv --clear .venv" in calls


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"TOO_OLD": "1"}, "Python 3.10 or newer is needed"),
        ({"INCLUDE": "/nowhere"}, "Python.h is missing"),
    ],
)
def test_set_up_says_what_the_machine_lacks(setup_env, variables, message):
    result, calls = setup_env(**variables)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert pip_calls(calls) == []


def test_set_up_asks_for_a_compiler(setup_env, tmp_path):
    for tool in ("bash", "dirname", "cmp", "cp", "mkdir", "touch"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    result, calls = setup_env(PATH=str(tmp_path / "bin"), CXX="no-such-compiler")
    assert result.returncode == 1 and "no C++ compiler found" in result.stderr
    assert pip_calls(calls) == []
