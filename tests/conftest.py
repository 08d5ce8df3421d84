"""Fixtures for all tests."""

import os

import pytest
import torch

from tests.programs import write_config
from tests.sphere_scene import write_sphere_scene

# The tensors of the tests are small: on busy processors more threads only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def tiny_dtu(tmp_path):
    """Root of a dataset with the one object ``scan1/scan1``."""
    write_sphere_scene(tmp_path / "tiny_dtu/scan1/scan1")
    return tmp_path / "tiny_dtu"


@pytest.fixture
def project(tmp_path, tiny_dtu):
    """Write a config for that dataset, with out_dir ``out``, changed by sections; gives its path."""
    return lambda **sections: write_config(tmp_path / "run", tiny_dtu, **sections)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run/out"
