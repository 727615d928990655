"""Sources against folders, tars and tables written here by others' libraries."""

import io
import json
import os
import pickle
import tarfile

import pytest

from caphuman_jax.errors import DataError, SettingError
from data_pipeline.sources.base import Item
from data_pipeline.sources.folder import FolderSource
from data_pipeline.sources.open import open_source
from data_pipeline.sources.tars import expand


def write(folder, **files):
    """Files by path, "__" for / and "_DOT_" for a dot in it."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_files(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def everything(source):
    """{key: (person, captions, content or the error's text)}."""
    found = {}
    for item in source.items():
        try:
            content = source.read(pickle.loads(pickle.dumps(item)))
        except DataError as error:
            content = str(error)
        found[item.key] = item.person, item.captions, content
    return found


def test_a_folder_is_searched_through_in_the_order_of_keys(tmp_path):
    write(
        tmp_path,
        b_DOT_JPG="b",
        a__2_DOT_png="2",
        a__1_DOT_jpeg="1",
        a_DOT_b__c__d_DOT_webp="d",
        a_DOT_jpg="a",
        notes_DOT_txt="no",
        _DOT_hidden__x_DOT_jpg="x",
        a__sub_DOT_txt="no",
    )
    source = open_source(tmp_path)
    assert everything(source) == {
        key: ("", (), content)
        for key, content in (
            ("a.b/c/d.webp", b"d"),
            ("a.jpg", b"a"),
            ("a/1.jpeg", b"1"),
            ("a/2.png", b"2"),
            ("b.JPG", b"b"),
        )
    }
    keys = [item.key for item in source.items()]
    assert keys == sorted(keys) and len(set(keys)) == 5
    assert everything(pickle.loads(pickle.dumps(source))) == everything(source)


def test_order_is_not_the_file_systems(tmp_path, monkeypatch):
    write(tmp_path, **{f"{name}_DOT_jpg": name for name in "qwertzuiop"})
    there = [item.key for item in open_source(tmp_path).items()]
    real = os.scandir

    class Backwards:
        def __init__(self, place):
            with real(place) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert [item.key for item in open_source(tmp_path).items()] == there == sorted(there)


def test_people_are_folders_only_when_asked(tmp_path):
    write(
        tmp_path,
        ann__1_DOT_jpg="1",
        ann__more__2_DOT_jpg="2",
        bob__1_DOT_jpg="3",
        stray_DOT_jpg="4",
    )
    assert {person for person, *_ in everything(open_source(tmp_path)).values()} == {""}
    assert [
        person for person, *_ in everything(open_source(tmp_path, person="folder")).values()
    ] == ["ann", "ann", "bob", ""]


def test_a_link_to_a_folder_above_ends(tmp_path):
    write(tmp_path, a__1_DOT_jpg="1")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert list(everything(open_source(tmp_path))) == ["a/1.jpg"]


def test_texts_beside_photos(tmp_path):
    write(
        tmp_path,
        a_DOT_jpg="a",
        a_DOT_txt="one\n\n two \n",
        b_DOT_jpg="b",
        b_DOT_json='{"caption": "three", "person": 7}',
        c_DOT_jpg="c",
        c_DOT_json="{",
    )
    found = everything(open_source(tmp_path))
    assert found["a.jpg"] == ("", ("one", "two"), b"a") and found["b.jpg"] == (
        "7",
        ("three",),
        b"b",
    )
    assert "c.jpg" in found["c.jpg"][2] and "cannot be read" in found["c.jpg"][2]


def test_files_of_persons_and_captions(tmp_path):
    write(
        tmp_path,
        photos__000001_DOT_jpg="1",
        photos__x__000002_DOT_png="2",
        photos__3_DOT_jpg="3",
        photos__3_DOT_txt="own",
        who_DOT_txt="000001.jpg 2880\n000002.jpg 2937\n",
        say_DOT_json=json.dumps({"x/000002.png": ["a", "b"], "000001": "c"}),
    )
    found = everything(
        open_source(
            tmp_path / "photos", person=tmp_path / "who.txt", captions=tmp_path / "say.json"
        )
    )
    assert found == {
        "000001.jpg": ("2880", ("c",), b"1"),
        "3.jpg": ("", ("own",), b"3"),
        "x/000002.png": ("2937", ("a", "b"), b"2"),
    }
    (tmp_path / "photos" / "identity_CelebA.txt").write_text("000001.jpg 5\n")
    assert everything(open_source(tmp_path / "photos"))["000001.jpg"][0] == "5"
    (tmp_path / "bad.txt").write_text("000001.jpg\n")
    with pytest.raises(DataError, match="bad.txt has a line '000001.jpg'"):
        open_source(tmp_path / "photos", person=tmp_path / "bad.txt")


def test_a_photo_that_is_gone_is_an_error_of_its_own(tmp_path):
    write(tmp_path, a_DOT_jpg="a", b_DOT_jpg="b")
    source = open_source(tmp_path)
    items = list(source.items())
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match="a.jpg: cannot be read"):
        source.read(items[0])
    assert source.read(items[1]) == b"b"


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing", "does not exist or is not a source of photos"),
        ("empty", "no photos in"),
        ("x.tar.gz", "compressed"),
        ("x.tar", "does not exist"),
        ("x.csv", "cannot be read"),
    ],
)
def test_what_is_no_source(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / name)


def test_tars_as_webdataset_has_them(tmp_path):
    write_tar(
        tmp_path / "p-001.tar",
        {
            "000b.jpg": b"b",
            "000b.txt": b"a caption",
            "000b.cls": b"12",
            "./sub/000a.png": b"a",
            "sub/000a.json": b'{"text": "from json", "identity": "x"}',
            "list.txt": b"no photo",
        },
    )
    write_tar(tmp_path / "p-000.tar", {"000b.left.jpg": b"l", "000b.right.jpg": b"r"})
    write_tar(tmp_path / "q-000.tar", {"z.jpg": b"z"})
    expected = {
        "p-000/000b.left.jpg": ("", (), b"l"),
        "p-000/000b.right.jpg": ("", (), b"r"),
        "p-001/000b.jpg": ("12", ("a caption",), b"b"),
        "p-001/sub/000a.png": ("x", ("from json",), b"a"),
    }
    assert (
        everything(open_source(tmp_path / "p-{000..001}.tar"))
        == expected
        == everything(open_source(tmp_path / "p-*.tar"))
    )
    assert list(everything(open_source(tmp_path / "{q,p}-00[01].tar"))) == [
        *expected,
        "q-000/z.jpg",
    ]
    with pytest.raises(DataError, match="p-002.tar does not exist"):
        open_source(tmp_path / "p-{001..002}.tar")
    with pytest.raises(SettingError, match="folders"):
        open_source(tmp_path / "p-001.tar", person="folder")


def test_braces():
    assert (
        expand("a-{8..11}-{x,y}.tar")[:3] == ["a-8-x.tar", "a-8-y.tar", "a-9-x.tar"]
        and len(expand("a-{08..11}-{x,y}.tar")) == 8
    )
    assert expand("a-{008..010}")[0] == "a-008"
    for far_too_many in ("a-{000..999999999999}.tar", "{0..9999}{0..9999}", f"{{0..{'9' * 400}}}"):
        with pytest.raises(DataError, match="more than 1,000,000 tars"):
            expand(far_too_many)


@pytest.mark.parametrize(
    "keep, told",
    [
        (1536 + 100, {"cut/b.jpg": "ends before", "cut/(damaged)": "damaged"}),
        (1536 - 300, {"cut/(damaged)": "damaged"}),
        (1024, {}),
    ],
)
def test_a_tar_that_was_cut_off(tmp_path, keep, told):
    """Headers and contents take 512 bytes each: the second photo's header begins at 1024."""
    write_tar(tmp_path / "whole.tar", {"a.jpg": b"a" * 10, "b.jpg": b"b" * 200, "c.jpg": b"c"})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:keep])
    found = everything(open_source(tmp_path / "cut.tar"))
    assert found.pop("cut/a.jpg")[2] == b"a" * 10
    assert set(found) == set(told) and all(text in found[key][2] for key, text in told.items())


def test_rubbish_in_the_middle_of_a_tar_is_told(tmp_path):
    write_tar(tmp_path / "x.tar", {"a.jpg": b"a", "b.jpg": b"b"})
    content = bytearray((tmp_path / "x.tar").read_bytes())
    content[1024:1536] = b"rubbish " * 64
    (tmp_path / "x.tar").write_bytes(content)
    found = everything(open_source(tmp_path / "x.tar"))
    assert found["x/a.jpg"][2] == b"a" and "1024" in found["x/(damaged)"][2]


def test_tables(tmp_path):
    import pyarrow
    from pyarrow import parquet

    write(tmp_path, p__1_DOT_jpg="1", p__2_DOT_jpg="2")
    (tmp_path / "t.csv").write_text(
        '\ufeffPath,caption,person,other\np/2.jpg,"two, with a '
        'comma",9,x\np/1.jpg,one,,\np/2.jpg,again,9,\n,no path,,\np/3.jpg,,,\n'
    )
    found = everything(open_source(tmp_path / "t.csv"))
    assert found.pop("p/1.jpg") == ("", ("one",), b"1") and found.pop("p/2.jpg") == (
        "9",
        ("two, with a comma", "again"),
        b"2",
    )
    assert (
        "names no photo" in found.pop("row 5")[2]
        and "cannot be read" in found.pop("p/3.jpg")[2]
        and not found
    )
    parquet.write_table(
        pyarrow.table(
            {
                "file": [str(tmp_path / "p" / "1.jpg"), "p/2.jpg"],
                "captions": [["a", "b"], []],
                "person_id": [4, 5],
            }
        ),
        tmp_path / "t.parquet",
    )
    assert list(everything(open_source(tmp_path / "t.parquet")).values()) == [
        ("4", ("a", "b"), b"1"),
        ("5", (), b"2"),
    ]
    (tmp_path / "t.tsv").write_text("name\tcaption\nx\ty\n")
    with pytest.raises(DataError, match="no column path; it has name, caption"):
        open_source(tmp_path / "t.tsv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(DataError, match="bad.parquet cannot be read"):
        open_source(tmp_path / "bad.parquet")


def test_the_originals_layout(tmp_path):
    write(
        tmp_path,
        imgid_DOT_txt="000002\n000001\n\n000003\n",
        Full_align_sup__000001_DOT_png="1",
        Full_align_sup__000002_DOT_png="2",
        Face_align_sup__000001_DOT_png="crop",
        captions_DOT_json='{"000001": "a man", "000002.png": ["a", "b"]}',
        identity_CelebA_DOT_txt="000001.jpg 2880\n000002.jpg 17\n",
    )
    found = everything(open_source(tmp_path))
    assert "cannot be read" in found.pop("000003")[2]
    assert found == {"000001": ("2880", ("a man",), b"1"), "000002": ("17", ("a", "b"), b"2")}


def test_buckets():
    """fsspec's file system in memory stands for one."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/b/1.jpg": b"1", "/bucket/a.jpg": b"a", "/bucket/a.txt": b"hello"})
    assert everything(open_source("memory://bucket")) == {
        "a.jpg": ("", ("hello",), b"a"),
        "b/1.jpg": ("", (), b"1"),
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("x.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"xyz"))
    memory.pipe("/bucket/t-0.tar", file.getvalue())
    for pattern in ("memory://bucket/t-*.tar", "memory://bucket/t-{0..0}.tar"):
        assert everything(open_source(pattern)) == {"t-0/x.jpg": ("", (), b"xyz")}
    memory.rm("/bucket", recursive=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf, from within tfds
def test_a_tfds_dataset(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    import cv2
    import numpy as np

    pictures = [np.full((8 + i, 9, 3), 20 * i, np.uint8) for i in range(5)]
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="png"),
            "caption": tfds.features.Text(),
            "identity": tfds.features.Scalar(np.int64),
        }
    )
    example = lambda i: {"image": pictures[i], "caption": f"number {i}", "identity": i % 2}
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny",
        "1.0.0",
        data_dir=str(tmp_path),
        features=features,
        split_datasets={
            "train": [(i, example(i)) for i in range(3)],
            "test": [(i, example(i)) for i in (3, 4)],
        },
    )
    folder = str(next(tmp_path.glob("tiny/1.0.0")))
    found = everything(open_source(f"tfds:{folder}"))
    assert list(found) == sorted(found) and len(found) == 5
    numbers = {}
    for key, (person, captions, content) in found.items():
        i = int(captions[0].removeprefix("number "))
        assert person == str(i % 2)
        assert np.array_equal(
            cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), pictures[i]
        )
        numbers.setdefault(key.partition("/")[0], set()).add(i)
    assert numbers == {"train": {0, 1, 2}, "test": {3, 4}}
    assert list(everything(open_source(f"tfds:{folder}:test"))) == [
        "test/000000000",
        "test/000000001",
    ]
    with pytest.raises(DataError, match="no split val; it has"):
        open_source(f"tfds:{folder}:val")
    with pytest.raises(DataError, match="cannot be opened"):
        open_source("tfds:no_such_dataset_at_all")


def test_items_say_what_is_wrong():
    with pytest.raises(DataError, match="k: gone"):
        FolderSource("/nowhere").read(Item.broken("k", "gone"))


DOTTED = {
    "a 2.0 (clean).jpg": b"a",
    "a 2.0 (clean).txt": b"of a",
    "p.1.jpg": b"1",
    "p.2.jpg": b"2",
    "p.2.txt": b"of p.2",
    "p.txt": b"of p",
    "q.input.jpg": b"q",
    "q.outputs.txt": b"of q",
    "r.left.jpg": b"l",
    "r.left.txt": b"of left",
    "r.right.jpg": b"r",
    "img.v2.txt": b"nobody's",
}


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_names_with_dots(tmp_path, kind, caplog):
    """The same files give the same captions in a folder and in a tar."""
    if kind == "tar":
        write_tar(tmp_path / "d.tar", DOTTED)
    else:
        write_files(tmp_path / "d", DOTTED)
    found = everything(open_source(tmp_path / ("d.tar" if kind == "tar" else "d")))
    assert {key.removeprefix("d/"): texts for key, (_, texts, _) in found.items()} == {
        "a 2.0 (clean).jpg": ("of a",),
        "p.1.jpg": ("of p",),
        "p.2.jpg": ("of p.2",),
        "q.input.jpg": ("of q",),
        "r.left.jpg": ("of left",),
        "r.right.jpg": (),
    }
    assert "1 text file belongs to no photo" in caplog.text and "img.v2.txt" in caplog.text


def test_one_bad_file_never_ends_a_listing(tmp_path):
    folder = tmp_path / "photos"
    write_files(folder, {"a.jpg": b"a", "deep.jpg": b"d", "deep.json": b"[" * 100_000})
    os.mkfifo(folder / "fifo.jpg")
    os.mkfifo(folder / "no_ending")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "no_photo").write_bytes(b"text")
    (folder / "gif").write_bytes(b"GIF89a")
    (folder / "text.jpg").write_bytes(b"t")
    (folder / "text.txt").write_bytes(b"\xff\xfe")
    with open(folder / "sparse.jpg", "wb") as file:
        file.truncate(2 << 30)
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"latin")
    source = open_source(folder)
    told = {}
    for item in source.items():
        item.key.encode()
        try:
            told[item.key] = source.read(item)
        except DataError as error:
            told[item.key] = str(error)
    assert list(told) == sorted(told)
    assert told.pop("a.jpg") == b"a" and told.pop("gif") == b"GIF89a"
    assert told.pop("caf\\udce9.jpg") == b"latin"
    assert told.keys() == {"deep.jpg", "fifo.jpg", "loop.jpg", "sparse.jpg", "text.jpg"}
    assert "nested" in told["deep.jpg"] and "named pipe" in told["fifo.jpg"]
    assert "2,048 MB" in told["sparse.jpg"] and "utf-8" in told["text.jpg"]


def test_latin_names_in_a_tar(tmp_path):
    options = {"encoding": "latin-1", "format": tarfile.USTAR_FORMAT}
    with tarfile.open(tmp_path / "l.tar", "w", **options) as t:
        for name, data in (("é.jpg", b"e"), ("é.txt", b"caption")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    assert everything(open_source(tmp_path / "l.tar")) == {
        "l/\\udce9.jpg": ("", ("caption",), b"e")
    }
