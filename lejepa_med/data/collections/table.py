"""A user's table joined to the items of a layout by file or case name: whose image it is, its site and its labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from lejepa_med.config.preparing import SourceConfig
from lejepa_med.data.collections.item import Collection, CollectionItem, without_suffix
from lejepa_med.errors import DataError


def joined(collection: Collection, folder: Path, settings: SourceConfig) -> Collection:
    """The same items with what the table knows of them.

    Raises:
        DataError: it is no table, lacks a column, names an image twice or none of them.
    """
    if settings.table is None:
        return collection
    rows = _rows(settings.table if settings.table.is_file() else folder / settings.table, settings)
    items = [_with(item, rows.get(_case(item.image.name)), settings) for item in collection.items]
    if not any(_case(item.image.name) in rows for item in items):
        raise DataError(
            f"source.table: none of its {len(rows)} rows names one of {len(items)} images in column "
            f"`{settings.file_column}`"
        )
    return dataclasses.replace(collection, items=items)


def _case(name: str) -> str:
    return without_suffix(Path(name).name)


def _rows(file: Path, settings: SourceConfig) -> dict[str, dict[str, str]]:
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, ValueError):
        raise DataError("source.table: not there, or no CSV table") from None
    columns = (settings.file_column, settings.patient_column, settings.site_column, *settings.label_columns)
    if missing := next((name for name in columns if name is not None and name not in table), None):
        raise DataError(f"source.table: no column `{missing}`; it has {', '.join(map(str, table.columns))}")
    cases = table[settings.file_column].map(_case)
    if cases.duplicated().any():
        raise DataError(f"source.table: {int(cases.duplicated().sum())} rows name an image that another row names too")
    records = table.to_dict("records")
    return {
        case: {str(name): str(value).strip() for name, value in row.items()}
        for case, row in zip(cases, records, strict=True)
    }


def _with(item: CollectionItem, row: dict[str, str] | None, settings: SourceConfig) -> CollectionItem:
    if row is None:
        return item
    patient = row[settings.patient_column] if settings.patient_column else item.patient
    return dataclasses.replace(
        item,
        patient=patient or item.patient,
        site=row[settings.site_column] if settings.site_column else item.site,
        labels={**item.labels, **{name: row[name] for name in settings.label_columns}},
    )
