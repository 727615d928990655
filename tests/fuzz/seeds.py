"""Makes the corpus: small valid files of every reader, in tests/fuzz/corpus/READER.

python -m fuzz.seeds        (with tests/ on PYTHONPATH)
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

CORPUS = Path(__file__).parent / "corpus"


def _image(side: int = 16) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return np.stack([rows * 15, columns * 15, rows * columns], -1).astype(np.uint8)


def write(reader: str, name: str, data: bytes | str) -> None:
    folder = CORPUS / reader
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def _weights(scratch: Path) -> None:
    import collections
    import datetime

    import flax.serialization
    import torch
    from safetensors.numpy import save

    arrays = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(2, np.float16)}
    tensors = {name: torch.tensor(value) for name, value in arrays.items()}
    nested = {"state_dict": collections.OrderedDict(tensors), "epoch": 3, "when": "now"}
    for protocol in (0, 2, 4):
        content = {"a": arrays["a.weight"], "b": [1, 2.5, None, "x"], "c": (True, {1, 2})}
        write("pickle", f"arrays_{protocol}", pickle.dumps(content, protocol))
    write("pickle", "set_and_complex", pickle.dumps({"s": frozenset({"a"}), "z": 1 + 2j}, 4))
    odd = {**nested, "callback": datetime.datetime(2020, 1, 1), "folder": Path("x")}
    for new in (True, False):
        kind = "torch_zip" if new else "torch_old"
        for name, content in (("plain", tensors), ("nested", nested), ("odd", odd)):
            file = scratch / "x.pt"
            torch.save(content, file, _use_new_zipfile_serialization=new)
            write(kind, name, file.read_bytes())
    write("safetensors", "plain", save(arrays, {"format": "pt"}))
    write("safetensors", "empty", save({}))
    bf = {"w": np.zeros((1, 2, 1), np.int8), "v": np.ones((), np.float64)}
    write("safetensors", "scalars", save(bf))
    tree = {"params": {"unet": {"kernel": np.ones((2, 2), np.float32), "n": 3, "t": "x"}}}
    write("msgpack", "params", flax.serialization.msgpack_serialize(tree))
    write("msgpack", "flat", flax.serialization.msgpack_serialize({"w": np.zeros(3, np.float16)}))
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    up, down = np.ones((32, 2), np.float16), np.ones((2, 32), np.float16)
    lora = {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down,
            f"{layer}.alpha": np.array(2.0, np.float16)}  # fmt: skip
    write("lora", "kohya", save(lora))
    write("lora", "dora", save({**lora, f"{layer}.dora_scale": np.ones((32, 1), np.float16)}))
    lokr = {f"{layer}.lokr_w1": np.ones((4, 4), np.float16),
            f"{layer}.lokr_w2": np.ones((8, 8), np.float16)}  # fmt: skip
    write("lora", "lokr", save(lokr))
    write("embedding", "plain", save({"emb_params": np.ones((2, 8), np.float32)}))
    file = scratch / "e.pt"
    torch.save({"string_to_param": {"*": torch.ones(1, 8)}, "name": "style", "step": 3}, file)
    write("embedding", "a1111", file.read_bytes())
    table = {"landmark_indices": np.arange(4), "lmk_face_idx": np.arange(4),
             "lmk_b_coords": np.full((4, 3), 1 / 3, np.float32)}  # fmt: skip
    for name, write_npz in (("stored", np.savez), ("compressed", np.savez_compressed)):
        out = io.BytesIO()
        write_npz(out, **table)
        write("npz", name, out.getvalue())
    corners = "vt 0 0\nvt 1 0\nvt 0 1\n# x\nf 1/1 2/2 3/3\nf 2/2/1 1/1/1 3/3/1\n"
    write("template", "triangles", "v 0 0 0\nv 1 0 0\nv 0 1 0\n" + corners)


def _onnx() -> None:
    """y = x · w as an ONNX file of a few fields, written by hand: no package for it is needed."""

    def field(number: int, data: bytes | int) -> bytes:
        if isinstance(data, int):
            return _varint(number << 3) + _varint(data)
        return _varint(number << 3 | 2) + _varint(len(data)) + data

    def value(name: bytes, shape: tuple[int, ...]) -> bytes:
        dims = b"".join(field(1, field(1, side)) for side in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    weight = np.ones((3, 512), np.float32)
    small = field(1, 3) + field(1, 512) + field(2, 1) + field(8, b"w") + field(9, weight.tobytes())
    node = lambda kind, ins, out: (
        b"".join(field(1, one) for one in ins) + field(2, out) + field(4, kind)
    )
    pool = node(b"GlobalAveragePool", (b"x",), b"p")
    flat = node(b"Flatten", (b"p",), b"f")
    product = node(b"MatMul", (b"f", b"w"), b"y")
    graph = b"".join(field(1, one) for one in (pool, flat, product)) + field(2, b"g")
    graph += field(5, small) + field(11, value(b"x", (1, 3, 112, 112)))
    graph += field(12, value(b"y", (1, 512)))
    write("onnx", "small", field(1, 8) + field(7, graph) + field(8, field(2, 13)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _photos(scratch: Path) -> None:
    import cv2
    from PIL import Image, ImageCms, PngImagePlugin

    picture = Image.fromarray(_image())

    def save(name: str, one: Image.Image, kind: str, **options) -> None:
        out = io.BytesIO()
        one.save(out, kind, **options)
        write("photo", name, out.getvalue())

    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save("jpeg", picture, "JPEG", exif=exif)
    save("jpeg_progressive_cmyk", picture.convert("CMYK"), "JPEG", progressive=True)
    save("mpo", picture, "MPO", save_all=True, append_images=[picture])
    save("png_profile", picture, "PNG", icc_profile=profile)
    save("png_palette", picture.convert("P"), "PNG", transparency=0)
    save("png_grey16", Image.fromarray(_image()[..., 0].astype(np.uint16) * 257), "PNG")
    save("png_rgba", picture.convert("RGBA"), "PNG", exif=exif)
    save("webp", picture, "WEBP")
    save("webp_lossless", picture.convert("RGBA"), "WEBP", lossless=True)
    save("gif", picture.convert("P"), "GIF", save_all=True, append_images=[picture.rotate(90)])
    save("bmp", picture, "BMP")
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        save(f"tiff_{compression}", picture, "TIFF", compression=compression)
    save("tiff_float", Image.fromarray(_image()[..., 0].astype(np.float32)), "TIFF")
    save("tiff_bilevel", picture.convert("1"), "TIFF", compression="group4")
    save("jp2", picture, "JPEG2000")
    save("avif", picture, "AVIF")
    save("ppm", picture, "PPM")
    write("photo", "pgm_text", b"P2\n# x\n16 16\n255\n" + b"7 " * 256)
    _settings(picture, PngImagePlugin.PngInfo)
    for name, code in (("mp4", "mp4v"), ("avi", "MJPG")):
        path = scratch / f"x.{name}"
        video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 25, (16, 16))
        for shift in range(3):
            video.write(np.roll(_image(), shift, 0))
        video.release()
        write("video", name, path.read_bytes())
    out = io.BytesIO()
    picture.save(out, "GIF", save_all=True, append_images=[picture.rotate(90)])
    write("video", "gif", out.getvalue())
    out = io.BytesIO()
    picture.save(out, "WEBP", save_all=True, append_images=[picture.rotate(90)])
    write("video", "webp", out.getvalue())


SETTINGS = {
    "prompt": "a photo", "negative_prompt": "", "combine": "mean", "seed": 1, "sampler": "ddim",
    "steps": 2, "guidance_scale": 3.0, "control_scale": 1.0, "identity_max_timestep": 1.0,
    "size": [64, 64], "model": "tiny", "weights": {"unet": "0" * 64}, "index": 0,
    "version": "0.2.0",
    "controls": [], "loras": [], "embeddings": [], "dtype": "float32", "memory": "normal",
    "jax": "0", "backend": "cpu", "head_by": "x",
    "people": [{"reference": {"name": "me.jpg", "sha256": "0" * 64, "face": 0},
                "asked_head": {"yaw": 10}, "head": {"yaw": 1.0, "pitch": 2.0, "roll": 3.0}}],
}  # fmt: skip


def _settings(picture, info) -> None:
    from caphuman_jax.io.metadata import metadata

    for name, entries in (("whole", metadata(SETTINGS)), ("none", metadata())):
        text, out = info(), io.BytesIO()
        for key, value in entries.items():
            text.add_text(key, value)
        picture.save(out, "PNG", pnginfo=text)
        write("metadata", name, out.getvalue())


def _texts() -> None:
    jobs = [
        {"reference": "me.jpg", "prompt": "a photo of a person", "head": {"yaw": 20}, "seed": 3},
        {"id": "b", "people": [{"reference": "me.jpg", "box": [0, 0, 0.5, 1], "prompt": "a hat"},
                               {"reference": "me.jpg", "face": 0}], "prompt": "x", "num_images": 2},
        {"product": {"prompt": ["a", "b"], "head": [{"yaw": 0}, {"expression": "smile=0.5"}]},
         "reference": ["me.jpg", "me.jpg"], "combine": "stack", "guidance_scale": 3},
        {"edit": {"photo": "me.jpg", "mask": "auto"}, "head": {"light": "left=0.5", "x": 0.4}},
        {"reference": "me.jpg", "prompt": "(a:1.2) [b] BREAK c", "steps": 4, "sampler": "ddim",
         "size": [64, 64], "negative_prompt": "blurry", "eta": 0.5},
    ]  # fmt: skip
    write("jobs", "lines", "\n".join(map(json.dumps, jobs)) + "\n")
    for number, job in enumerate(jobs):
        write("jobs", f"line_{number}", json.dumps(job))
    write("json", "nested", '{"a": [1, 2.5, -3e4, "x\\u00e9", null, true], "b": {"c": {}}}')
    head = {"model": "anny", "yaw": 10, "pitch": -3.5, "position": [0.5, 0.5, 0.5],
            "expression": {"jawOpen": 0.3}, "light": "left=0.8", "picture": [512, 512]}  # fmt: skip
    write("head", "numbers", json.dumps(head))
    write("head", "names", json.dumps({"smile": 0.5, "x": 0.4, "light": [[0.5] * 3] * 9}))
    write("table_csv", "commas", "frame,yaw,pitch,smile\n0,1.5,2,0.1\n1,2,,0.2\n")
    write("table_csv", "semicolons", "Name;yaw;x\na;1,5;0,4\nb;-2,25;0,5\n")
    write("table_csv", "quoted", 'yaw,expression\n"3","smile=0.8,jawOpen=0.3"\n')
    write("table_json", "list", json.dumps([{"yaw": 1, "time": 0.0}, {"yaw": 2, "smile": 0.5}]))
    write("photo_table", "commas", 'path,caption,person\na.jpg,"a, b",x\nb.jpg,c,\na.jpg,d,x\n')
    write("pairs", "lines", "a.jpg 12\nb.jpg\tsome words\nc.jpg,3\n")
    for name, text in {
        "plain": "a photo of a person, smiling", "weights": "(word:1.3), ((word)), [word] \\(x\\)",
        "break": "a photo BREAK of a person BREAK", "long": "word, " * 100, "tags": "<lora:x:0.8>",
    }.items():  # fmt: skip
        write("prompt", name, text)
    for name, text in {
        "all": "ref=me.jpg,yaw=15,expression=smile:0.8+jawOpen:0.3,light=left:1,position=.5/.5/.5",
        "region": "ref=me.jpg,ref=b.jpg,face=1,prompt=a hat, red,box=0/0/.5/1,mask=m.png",
        "head": "ref=me.jpg,head=h.jpg,head-face=0,take=pose+position,framing=photo,roll=-3",
    }.items():  # fmt: skip
        write("person", name, text)
    for name, text in {
        "expression": "--expression=smile=0.8,jawOpen=0.3", "light": "--light=-1,0,0.5,1",
        "light_list": "--light=[" + ",".join(["0.5"] * 27) + "]", "position": "--position=.5,.5,.5",
        "many": "--yaw=3\n--pitch=-2.5\n--roll=1e1\n--take=all\n--framing=head\n--head-face=1",
        "lora": "--lora=style.safetensors:0.8,0.5", "embedding": "--embedding=x.pt=word",
        "box": "--seed=3\n--steps=20\n--guidance-scale=7.5\n--size=512x512\n--num-images=2",
    }.items():  # fmt: skip
        write("options", name, text)
    for name, text in {
        "number": "optimizer.learning_rate=1e-4", "seed": "seed=3", "bool": "x=true",
        "two": "train.steps=100\ntrain.batch_size=8", "recipe": "recipe=mini",
    }.items():  # fmt: skip
        write("override", name, text)
    suite = Path(__file__).parents[2] / "caphuman_jax" / "evaluation" / "suites"
    for name in ("quick", "edit", "heads", "people"):
        write("suite", name, (suite / f"{name}.toml").read_bytes())


def _folders(scratch: Path) -> None:
    import struct

    from fuzz.readers import small_layout
    from records_standin import write_standin
    from tiny_model import TINY

    from data_pipeline.records import tf_example
    from data_pipeline.records.reader import RecordsFolder

    document = {
        "format": "caphuman_jax", "format_version": 1, "config": TINY.to_dict(),
        "files": {"unet": {"file": "unet.safetensors", "sha256": "0" * 64, "bytes": 10}},
        "metadata": {"steps": 3, "license": "x"},
    }  # fmt: skip
    write("model_config", "tiny", json.dumps(document, indent=1))
    folder = write_standin(scratch / "records", 2, layout=small_layout(), shards=1, seed=1)
    found = RecordsFolder(folder)
    for file in sorted(found.path.glob("*array_record*")):
        write("array_record", "two", file.read_bytes())
    write("manifest", "two", (found.path / "manifest.json").read_bytes())
    messages = found.read("train", [0, 1])
    write("record", "first", messages[0])
    tiny = [f for f in found.features if f.kind in ("text", "texts")]
    texts = tf_example.decode(found.features, messages[1], [f.name for f in tiny])
    message = tf_example.encode(tiny, texts)
    write("record", "texts", message)
    framed = [struct.pack("<Q", len(m)) + b"\0" * 4 + m + b"\0" * 4 for m in (message, b"x", b"")]
    write("tfrecord", "three", b"".join(framed))
    photo = (CORPUS / "photo" / "jpeg").read_bytes()
    for kind, name in ((tarfile.PAX_FORMAT, "pax"), (tarfile.GNU_FORMAT, "gnu")):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
            for member, data in (
                ("a.jpg", photo), ("a.txt", b"caption\nanother"), ("b/c.d.png", photo[:300]),
                ("b/c.json", b'{"caption": "x", "person": 3}'), ("a.cls", b"7"),
                ("\u00e9" * 60 + ".jpg", b"x"),
            ):  # fmt: skip
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        write("tar", name, out.getvalue())


def _identities(scratch: Path) -> None:
    import jax.numpy as jnp
    from safetensors.numpy import load_file, save_file

    from caphuman_jax.face.face import Face
    from caphuman_jax.head.head import Head
    from caphuman_jax.person import identity_file
    from caphuman_jax.person.person import Person

    values = {"identity": (4,), "expression": (5,), "rotation": (3, 3), "scale": (), "residual": (),
              "translation": (2,), "size": (2,), "light": (9, 3), "albedo": (6, 3)}  # fmt: skip
    person = Person(
        name="me.jpg", sha256="0" * 64, square=_image(), landmarks=np.ones((9, 3), np.float32),
        head=Head(**{name: jnp.ones(shape, jnp.float32) for name, shape in values.items()}),
        place=np.ones((2, 3)), photo_size=(20, 30), face_count=1, known_by="shipped",
        face=Face(score=1.0, presence=1.0, box=np.ones(4, np.float32), keypoints=np.ones((6, 2)),
                  landmarks=np.ones((9, 3), np.float32), expression=np.ones(5, np.float32)),
        vectors=np.ones((1, 8), np.float32), image_tokens=np.ones((1, 2, 4), np.float32),
    )  # fmt: skip
    path = scratch / "me.identity"
    identity_file.save(path, person, "anny")
    write("identity", "signed", path.read_bytes())
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        facts = {key: text for key, text in file.metadata().items() if key != "sha256"}
    save_file(load_file(path), path, facts)
    write("identity", "unsigned", path.read_bytes())


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    shutil.rmtree(CORPUS, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        _weights(scratch)
        _onnx()
        _photos(scratch)
        _texts()
        _folders(scratch)
        _identities(scratch)
    total = sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file())
    print(f"{len(list(CORPUS.rglob('*')))} files, {total / 1024:.0f} KB")
    for file in sorted(CORPUS.rglob("*")):
        if file.is_file() and file.stat().st_size > 8000:
            print(file.relative_to(CORPUS), file.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
