"""Whom weights were trained on, for the leak checks of `benchmark` and `select`.

RUN/pretraining_series.csv
    series_key, patient_key    of every series; keys of an index (which compare within that index), or `item N` of data
                               that was given in Python, which tell nobody
    group_key                  only if some are near duplicates of others, which batches treat as one
    origin                     only after init_from: `run`; `ancestor` for what the first weights had seen before it;
                               one row `unknown`, without keys, where that is not known
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lejepa_med.data.cache import write_atomically
from lejepa_med.data.dataset import Source
from lejepa_med.errors import DataError

FILE = "pretraining_series.csv"
_KEYS = ["series_key", "patient_key"]
_DRAWN_BY = [*_KEYS, "group_key"]


def record_of(source: Source, init_from: Path | None, init_from_seen: str = "unknown") -> pd.DataFrame:
    """Rows of a run that trains on `source`, starting from weights of `init_from`.

    `init_from_seen` is "no_patients" if somebody vouches for weights that have no record: then there is no such row.
    """
    own = pd.DataFrame({"series_key": source.keys, "patient_key": source.patients})
    if len(set(source.groups)) < len(source.groups):
        own["group_key"] = source.groups
    if init_from is None:
        return own
    before = _ancestors(init_from)
    if init_from_seen == "no_patients" and not (before["origin"] != "unknown").any():
        before = before.iloc[:0]
    before = before[~before["series_key"].isin(own["series_key"])]
    return pd.concat([own.assign(origin="run"), before], ignore_index=True).fillna("")


def _ancestors(init_from: Path) -> pd.DataFrame:
    """All that a run's record says, if the weights are a run's; one `unknown` row else (exports and bare files)."""
    folder = init_from.parent if init_from.name in ("backbone.safetensors", "model.safetensors") else init_from
    if not (folder / FILE).is_file():
        return pd.DataFrame([["", "", "unknown"]], columns=[*_KEYS, "origin"])
    table = read_record(folder)[[*_KEYS, "origin"]]
    return table.assign(origin=table["origin"].replace("run", "ancestor"))


def write_record(run: Path, record: pd.DataFrame) -> None:
    """A resumed run keeps the file it has."""
    if not (run / FILE).exists():
        write_atomically(run / FILE, record.to_csv(index=False).encode())


def read_record(run: Path) -> pd.DataFrame:
    """Columns `series_key, patient_key, origin`, as texts; those of an `unknown` row are empty."""
    table = pd.read_csv(run / FILE, dtype=str, keep_default_na=False)
    if not set(_KEYS) <= set(table.columns):
        raise DataError(f"run {run}: {FILE} has no columns {', '.join(_KEYS)}")
    return table if "origin" in table else table.assign(origin="run")


def is_complete(record: pd.DataFrame) -> bool:
    """Whether everyone whom the weights have seen is in the record, by a key that others can know."""
    nameless = record["series_key"].str.fullmatch(r"item \d+")
    return not (nameless | (record["origin"] == "unknown")).any()


def require_same_series(run: Path, record: pd.DataFrame) -> None:
    """Batches are drawn from these series, and the file is the only record of who was trained on.

    Raises:
        DataError: the run that is resumed was started on others.
    """
    if not (run / FILE).exists():
        return
    before, now = (
        _with_groups(table[table["origin"] == "run"])[_DRAWN_BY].to_numpy().tolist()
        for table in (read_record(run), record if "origin" in record else record.assign(origin="run"))
    )
    if before != now:
        raise DataError(
            f"run {run}: started on {len(before)} series that are not the {len(now)} there are now (another cache, "
            "one that has grown, other near duplicates, or an older version of lejepa-med); start a new run instead"
        )


def _with_groups(table: pd.DataFrame) -> pd.DataFrame:
    return table if "group_key" in table else table.assign(group_key=table["series_key"])
