"""The one door to the compiled code."""

from im2mesh.errors import InputError


def new_mise(resolution_0, depth, threshold):
    """A new :class:`im2mesh.ext.mise.MISE`.

    Raises
    ------
    InputError
        When the extension is not compiled.
    """
    try:
        from im2mesh.ext.mise import MISE
    except ImportError as err:
        raise InputError(
            f"the compiled part of im2mesh cannot be loaded ({err}). Build it in the repository's "
            "root folder with: python setup.py build_ext --inplace"
        ) from err
    return MISE(resolution_0, depth, threshold)
