"""A column that is added to the list `TRAINED` of the records' schema, and as a field to `Batch`,
reaches the batches of both trainings.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from records_standin import write_standin

from caphuman_jax.errors import DataError
from caphuman_jax.training import batches, dataset, objective, resident_batches
from data_pipeline.loading.loader import make_loader
from data_pipeline.records import schema
from data_pipeline.records.columns import load_records

AGE = schema.Feature("age", "array", (2,), low=0, meaning="least and greatest guess, years")


@pytest.fixture
def with_age(monkeypatch):
    """The two lines of code that a new column costs."""
    monkeypatch.setattr(schema, "TRAINED", (AGE,))
    made = dataclasses.make_dataclass(
        "Batch", [("age", object, None)], bases=(objective.Batch,), frozen=True
    )
    jax.tree_util.register_dataclass(made)
    for module in (batches, resident_batches):
        monkeypatch.setattr(module, "Batch", made)


def test_both_trainings_get_the_column_of_each_photo(
    with_age, tiny, training, tmp_path, monkeypatch
):
    ages = np.array([[20, 24], [31, 39], [50, 57], [8, 9]], np.float32)
    change = lambda record, number: (
        record | {"age": ages[number], "attributes": json.dumps({"kind": "colour"})}
    )
    folder = write_standin(tmp_path / "records", 4, albedo=(4801, 3), hints=True, change=change)

    rows = next(make_loader(folder, batch=8, seed=3, loader="grain", hints="pictures"))
    batch = jax.jit(lambda rows: batches.make_batch(rows, None, 32))(rows)
    np.testing.assert_array_equal(batch.age, ages[rows["index"]])
    assert len(set(rows["index"])) == 4

    # What takes long, and has nothing to do with columns.
    zeros = lambda *shape: lambda *_, **__: np.zeros(shape, np.uint8)
    monkeypatch.setattr(dataset, "render", zeros(4, 2, 44, 44, 9))
    tokens = np.zeros((4, 4, 5, 12), np.float16), np.zeros((4, 4, 8), np.float32)
    monkeypatch.setattr(dataset, "identity_tokens", lambda *_, **__: tokens)
    data = dataset.build(load_records(folder), np.arange(4), log=lambda line: None)
    data["captions"][:] = np.arange(4)[:, None, None, None]  # which photo a row shows
    resident = resident_batches.resident(data)
    cfg = dataclasses.replace(training, background_swap_prob=0.0)
    batch = jax.jit(lambda data, key: resident_batches.sample_batch(data, key, cfg, 32))(
        resident, jax.random.key(0)
    )
    shown = np.asarray(batch.token_ids)[:, 0]
    assert len(set(shown)) > 1
    np.testing.assert_array_equal(batch.age, ages[shown])

    assert batches.stored_batch(tiny, 8)["age"].shape == (8, 2)


def test_records_without_the_column_are_refused(with_age, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(schema, "TRAINED", ())
        folder = write_standin(tmp_path / "records", 3)
    for read in (load_records, lambda folder: make_loader(folder, batch=2, loader="grain")):
        with pytest.raises(DataError, match="lacks age, .* make them again"):
            read(folder)


def test_every_trained_column_is_a_field_of_the_batch():
    fields = {field.name for field in dataclasses.fields(objective.Batch)}
    assert {feature.name for feature in schema.TRAINED} <= fields
