"""Builds the compiled extensions; everything else about the package is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

# Loops over points become SIMD. Not -march=native: wheels run on other processors as well.
optimise = ["/O2"] if os.name == "nt" else ["-O3"]
extensions = Extension(
    "im2mesh.ext.*", ["im2mesh/ext/*.pyx"], language="c++", extra_compile_args=optimise
)

setup(ext_modules=cythonize([extensions]))
