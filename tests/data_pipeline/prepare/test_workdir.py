import pytest
from cheap_measurer import CheapMeasurer, CheapSettings, write_photos

from caphuman_jax.errors import DataError
from caphuman_jax.io import files
from data_pipeline.prepare import workdir
from data_pipeline.records import tf_example
from data_pipeline.records.schema import features
from data_pipeline.sources.base import Item
from data_pipeline.sources.open import open_source


def _items(count):
    return [
        Item(f"{i:05d}.jpg", "p" * (i % 2), ("a", "b")[: i % 3], (f"/photos/{i}", i))
        for i in range(count)
    ]


def test_the_listing_gives_back_every_item_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "LINES", 3)
    items, folder = _items(workdir.CHUNK * 7 + 5), str(tmp_path)
    listing = workdir.write_listing(items, folder)
    assert (listing.photos, listing.chunks) == (len(items), 8) and workdir.read_listing(
        folder
    ) == listing
    places = [place for file in range(3) for place in workdir.chunk_places(file, folder)]
    assert [number for number, *_ in places] == list(range(8))
    assert [item for place in places for item in workdir.read_items(place, folder, Item)] == items
    assert workdir.read_items(places[-1], folder, Item) == items[-5:]


def test_the_listings_hash_is_of_what_is_there_and_not_of_where():
    hashed = lambda items: workdir.write_listing(items, None).sha256
    moved = [Item(i.key, i.person, i.captions, ("elsewhere",)) for i in _items(40)]
    assert hashed(moved) == hashed(_items(40)) != hashed(_items(41))
    assert hashed([*_items(39), Item("00039.jpg", "somebody else")]) != hashed(_items(40))


@pytest.mark.parametrize(
    "keys, message", [(["a", "a"], "two photos have the name 'a'"), (["b", "a"], "must be sorted")]
)
def test_keys_are_unique_and_sorted(keys, message):
    with pytest.raises(DataError, match=message):
        workdir.write_listing([Item(key) for key in keys], None)


@pytest.fixture
def chunk(tmp_path):
    """A measured chunk: folder, photos' contents, features."""
    contents = {"a.jpg": b"one", "b.jpg": b"bad", "c.jpg": b"stumble", "d.jpg": b"two"}
    source = open_source(write_photos(tmp_path / "photos", contents))
    settings = CheapSettings()
    found = features(settings.layout())
    items = [*source.items(), Item.broken("e.jpg", "it is not there")]
    summary = workdir.measure_chunk(
        items, 12, str(tmp_path), found, source, CheapMeasurer(settings)
    )
    return str(tmp_path), summary, found


def test_a_chunk_holds_records_and_says_what_became_of_all_photos(chunk):
    folder, summary, found = chunk
    assert (
        summary
        == {"kept": 2, "dropped": {"error": 1, "no_face": 1, "unreadable": 1}}
        == workdir.read_summary(folder, 12)
    )
    assert (
        list(workdir.measured_chunks(folder)) == [12]
        and workdir.is_measured(folder, 12)
        and not workdir.is_measured(folder, 13)
    )
    entries = workdir.read_index(folder, 12)
    assert [(e["key"], e.get("reason")) for e in entries] == [
        ("a.jpg", None),
        ("b.jpg", "no_face"),
        ("c.jpg", "error"),
        ("d.jpg", None),
        ("e.jpg", "unreadable"),
    ]
    assert (
        entries[2]["detail"] == "ValueError: stumbled over c.jpg"
        and "it is not there" in entries[4]["detail"]
    )
    record = tf_example.decode(
        [f for f in found if f.name != "partners"], workdir.read_record(folder, entries[3]["place"])
    )
    assert (record["key"], record["sha256"]) == ("d.jpg", entries[3]["sha256"])
    assert workdir.recognition(entries[3]).tolist() == record["recognition/mobilefacenet"].tolist()


@pytest.mark.parametrize(
    "ending, damage, read",
    [
        ("records", lambda data: data[:-1], workdir.read_record),
        ("records", lambda data: data[:-9] + b"x" + data[-8:], workdir.read_record),
        ("index", lambda data: data[:-9], workdir.read_index),
    ],
)
def test_damaged_work_is_named(chunk, ending, damage, read):
    folder, *_ = chunk
    place = workdir.read_index(folder, 12)[3]["place"]
    path = workdir.chunk_path(folder, 12, ending)
    files.write(path, damage(files.read(path)))
    with pytest.raises(
        DataError,
        match=f"0000012.{ending} is damaged; remove .*0000012.index and rerun the same command"
        f"|index is damaged; remove it",
    ):
        read(folder, place if read is workdir.read_record else 12)


def test_an_error_that_is_not_the_photos_stops_the_run(tmp_path):
    settings = CheapSettings()
    for content, error in ((b"full", OSError), (b"lost", RuntimeError)):
        source = open_source(
            write_photos(tmp_path / content.decode(), {"a.jpg": b"one", "b.jpg": content})
        )
        with pytest.raises(error):
            workdir.measure_chunk(
                list(source.items()),
                0,
                str(tmp_path),
                features(settings.layout()),
                source,
                CheapMeasurer(settings),
            )
    assert not workdir.is_measured(str(tmp_path), 0)


def test_a_file_is_whole_or_not_there(tmp_path):
    path = str(tmp_path / "folder" / "file.json")
    files.write(path, b"old")
    with pytest.raises(KeyboardInterrupt), files.written(path) as beside:
        with open(beside, "wb") as stream:
            stream.write(b"half of what is ne")
        raise KeyboardInterrupt
    assert (
        files.read(path) == b"old"
        and files.names(str(tmp_path / "folder")) == ["file.json"]
        and len(list((tmp_path / "folder").iterdir())) == 1
    )
    assert files.read(path, 1, 2) == b"ld"
    with pytest.raises(OSError, match="too early"):
        files.read(path, 1, 3)
