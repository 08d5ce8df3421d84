"""Fixtures for all tests."""

import pytest

from tests.sphere_scene import write_sphere_scene


@pytest.fixture
def tiny_dtu(tmp_path):
    """Root of a dataset with the one object ``scan1/scan1``."""
    write_sphere_scene(tmp_path / "tiny_dtu/scan1/scan1")
    return tmp_path / "tiny_dtu"
