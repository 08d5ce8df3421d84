"""The one door to the compiled code."""

from importlib import import_module

from im2mesh.errors import InputError


def new_hash_grid(*sizes):
    """A new :class:`im2mesh.ext.hashgrid.HashGrid`.

    Raises
    ------
    InputError
        When the extension is not compiled.
    """
    return _compiled("hashgrid").HashGrid(*sizes)


def new_mise(resolution_0, depth, threshold):
    """A new :class:`im2mesh.ext.mise.MISE`.

    Raises
    ------
    InputError
        When the extension is not compiled.
    """
    return _compiled("mise").MISE(resolution_0, depth, threshold)


def points_in_cells(*arguments):
    """:func:`im2mesh.ext.cells.points_in_cells`.

    Raises
    ------
    InputError
        When the extension is not compiled.
    """
    return _compiled("cells").points_in_cells(*arguments)


def samples_in_cells(*arguments):
    """:func:`im2mesh.ext.cells.samples_in_cells`.

    Raises
    ------
    InputError
        When the extension is not compiled.
    """
    return _compiled("cells").samples_in_cells(*arguments)


def find_hull_cells(*arguments):
    """:func:`im2mesh.ext.hull.find_cells`.

    Raises
    ------
    InputError
        When the extension is not compiled.
    """
    return _compiled("hull").find_cells(*arguments)


def first_hull_depths(*arrays):
    """:func:`im2mesh.ext.hull.first_depths`.

    Raises
    ------
    InputError
        When the extension is not compiled.
    """
    return _compiled("hull").first_depths(*arrays)


def new_point_grid(points):
    """A new :class:`im2mesh.ext.nearest.PointGrid`.

    Raises
    ------
    InputError
        When the extension is not compiled.
    """
    return _compiled("nearest").PointGrid(points)


def _compiled(name):
    try:
        return import_module(f"im2mesh.ext.{name}")
    except ImportError as err:
        raise InputError(
            f"the compiled part of im2mesh cannot be loaded ({err}). Build it in the repository's "
            "root folder with: python setup.py build_ext --inplace"
        ) from err
