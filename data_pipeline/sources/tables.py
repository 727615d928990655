"""Photos that a table names: CSV, TSV or Parquet with a column of paths, and optionally captions
and persons."""

from __future__ import annotations

import csv
import dataclasses
import io
import posixpath
from collections.abc import Iterator

from caphuman_jax.errors import DataError
from caphuman_jax.io.files import valid_text
from data_pipeline.sources import base, paths
from data_pipeline.sources.base import CAPTION_NAMES, PERSON_NAMES, Item, Source

PATH_NAMES = ("path", "file", "filename", "file_name", "image", "image_path")


@dataclasses.dataclass(frozen=True)
class TableSource(Source):
    """Rows of a table. Keys are the paths as written; relative ones are relative to the table's
    folder. Rows with the same path are one photo with the captions of all of them. A row without a
    path is reported by its number.
    """

    table: str

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        items: dict[str, Item] = {}
        for number, row in enumerate(self._rows(), 2):
            path = row.pop("path")
            if not path:
                items[f"row {number}"] = Item.broken(
                    f"row {number}", f"{self.table} names no photo there"
                )
                continue
            item = base.described(
                valid_text(path), (paths.join(posixpath.dirname(self.table), path),), row
            )
            before = items.get(path)
            if before:
                captions = dict.fromkeys(before.captions + item.captions)
                item = dataclasses.replace(
                    item, person=before.person or item.person, captions=tuple(captions)
                )
            items[path] = item
        for key in sorted(items):
            yield items[key]

    def _read(self, item: Item) -> bytes:
        return paths.read_photo_file(*item.place)

    def _rows(self) -> Iterator[dict]:
        """{"path": …, caption and person columns by their names} of each row."""
        columns, rows = (
            _read_parquet(self.table)
            if self.table.lower().endswith(".parquet")
            else _read_csv(self.table)
        )
        lower = {name.strip().lower(): name for name in columns}
        path = next((lower[name] for name in PATH_NAMES if name in lower), None)
        if path is None:
            raise DataError(f"{self.table} has no column path; it has {', '.join(columns)}")
        kept = {name: lower[name] for name in (*CAPTION_NAMES, *PERSON_NAMES) if name in lower}
        for row in rows:
            yield {"path": str(row[path] or "").strip()} | {
                name: row[column] for name, column in kept.items()
            }


def _read_csv(table: str) -> tuple[list[str], Iterator[dict]]:
    reader = csv.DictReader(
        io.StringIO(paths.read_text(table), newline=""),
        delimiter="\t" if table.lower().endswith(".tsv") else ",",
    )

    def rows():
        try:
            yield from reader
        except csv.Error as error:
            raise DataError(f"{table}, line {reader.line_num}: {error}") from error

    return list(reader.fieldnames or []), rows()


def _read_parquet(table: str) -> tuple[list[str], Iterator[dict]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{table} needs the package pyarrow; install caphuman_jax[data]") from error
    names = (*PATH_NAMES, *CAPTION_NAMES, *PERSON_NAMES)
    try:
        with paths.open_file(table) as stream:
            file = parquet.ParquetFile(stream)
            columns = file.schema_arrow.names
            wanted = [name for name in columns if name.strip().lower() in names]
            rows = [row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist()]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{table} cannot be read as a Parquet table ({error})") from error
    return columns, iter(rows)
