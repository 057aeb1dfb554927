"""Tables that an old pandas pickled, read without pandas and without trusting them."""

from __future__ import annotations

import pickle
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import DataError


class _Held:
    """Stands for an object of pandas: keeps the state that it would have been given."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _index(_kind: type, content: dict[str, Any]) -> Any:
    """Stand for what rebuilds an index: return its values."""
    return content.get("data")


# What arrays are rebuilt by, under the names that it has had in numpy.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("pandas.core.frame", "DataFrame"): _Held,
    ("pandas.core.internals.managers", "BlockManager"): _Held,
    ("pandas.core.indexes.base", "Index"): _Held,
    ("pandas.core.indexes.base", "_new_Index"): _index,
    ("pandas.core.indexes.range", "RangeIndex"): _Held,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; a pickle can call whatever it names, so that any other is refused."""
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_table(file: Path) -> dict[str, NDArray[Any]]:
    """Return the columns (n,) of a table; raises DataError for a pickle of anything else."""
    try:
        _, blocks, names, *_ = _Unpickler(BytesIO(file.read_bytes())).load().state["_data"].state
        return dict(zip(chain(*names), chain(*blocks), strict=True))
    except (pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file.name} is no table of an old pandas ({error}). Check where it comes from.") from None
