"""The one door to the compiled code."""

from im2mesh.errors import InputError

try:
    from im2mesh.ext.mise import MISE
except ImportError as err:
    raise InputError(
        f"the compiled part of im2mesh cannot be loaded ({err}). Build it in the repository's "
        "root folder with: python setup.py build_ext --inplace"
    ) from err

__all__ = ["MISE"]
