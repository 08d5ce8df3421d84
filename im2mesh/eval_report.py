"""The files and the table that an evaluation leaves behind."""

from pathlib import Path

import pandas as pd

from im2mesh.files import atomic_path

_TABLE_UNITS = {
    "completeness": "[cube edges]",
    "accuracy": "[cube edges]",
    "chamferL1": "[cube edges]",
    "normals": "[mean |cos|]",
    "iou": "[0..1]",
    "F@0.0050": "[0..1]",
    "F@0.0100": "[0..1]",
    "F@0.0200": "[0..1]",
}


def write_report(rows, folder, eval_file_name="eval_meshes"):
    """Write the metrics of every object, and their means.

    ``<folder>/<eval_file_name>full.pkl`` holds a row per object,
    ``<folder>/<eval_file_name>.csv`` the returned table. Either is written in full or not at all.

    Parameters
    ----------
    rows : list of dict, or pandas.DataFrame
        One per object, at least one: 'class', 'model' and the metrics.
    folder : str or Path
        Made when missing.
    eval_file_name : str
        The name ``test.eval_file_name`` of the configuration.

    Returns
    -------
    pandas.DataFrame
        A row per class, the mean over its objects, and a last row 'mean', in which every class
        counts the same. NaN (not measurable) stays out of a mean.

    Raises
    ------
    InputError
        When a file cannot be written.
    """
    full = pd.DataFrame(rows)
    per_class = full.drop(columns="model").groupby("class").mean(numeric_only=True)
    per_class.loc["mean"] = per_class.mean()
    with atomic_path(Path(folder) / f"{eval_file_name}full.pkl") as path:
        full.to_pickle(path)
    with atomic_path(Path(folder) / f"{eval_file_name}.csv") as path:
        per_class.to_csv(path)
    return per_class


def format_table(per_class):
    """The main columns of ``write_report``'s table as text, with units."""
    shown = per_class[[name for name in _TABLE_UNITS if name in per_class]].rename_axis(None)
    shown.columns = pd.MultiIndex.from_tuples([(name, _TABLE_UNITS[name]) for name in shown])
    table = shown.to_string(float_format="{:.4f}".format, na_rep="-", sparsify=False)
    note = "1 cube edge = side of the object-space cube; papers print chamferL1 times 10."
    return f"{table}\n{note}"
