"""Tables to CSV."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from marl_tr.errors import UserError
from marl_tr.vector.contract import Table

__all__ = ["write_table"]


def write_table(path: Path | str, table: Table) -> None:
    """Write `table` as CSV, a header and a line a row, all or nothing.

    Numbers are written with as many digits as their dtype needs to be read back the same; NaN as ``nan``, booleans as
    0 and 1.

    Args:
        path: Its folder is made where it is missing.
        table: Columns ``[N]``.

    Raises:
        ValueError: There is no column, or the columns are not equally long rows of numbers or words.
        UserError: The disk refuses.
    """
    path = Path(path)
    shapes = {name: np.shape(column) for name, column in table.items()}
    if len({*shapes.values()}) != 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"{path}: a table needs columns of one shape [N], not {shapes}")
    columns = [np.asarray(column) for column in table.values()]
    # NumPy writes a float32 as 0.1 where Python, for which it is a float64, would write 0.10000000149011612.
    words = [(column.astype(int) if column.dtype == bool else column).astype(str).tolist() for column in columns]
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table)
            writer.writerows(zip(*words, strict=True))
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
