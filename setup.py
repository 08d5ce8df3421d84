"""Builds the compiled extensions; everything else about the package is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(ext_modules=cythonize([Extension("im2mesh.ext.*", ["im2mesh/ext/*.pyx"], language="c++")]))
