"""Photos -> what training needs on disk: `python -m data_pipeline.precompute --photos DIR --out DIR`.

For every photo with a face: the square around the head (as WebP, at the photo's own resolution), landmarks,
expression, recognition vector and measured attributes. Heads, hints and identity tokens follow from these and are
made when training starts, where there is an accelerator.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

MARGIN = 1.35  # stored square over the head square: room for shifts and turns
STORED = 346  # pixels of the stored square at most: 256 × MARGIN
_PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def measure_photo(path: str) -> dict:
    """One photo's record, or {"file", "dropped": why}. Never raises for a bad photo."""
    from caphuman_jax.errors import CapHumanError
    from caphuman_jax.face import recognise
    from caphuman_jax.face.colours import measure_colours
    from caphuman_jax.face.face import find_faces
    from caphuman_jax.face.framing import HEAD_SQUARE, crop_square, head_square
    from caphuman_jax.face.networks import network
    from caphuman_jax.images import read_photo

    try:
        photo = read_photo(path)
        faces = find_faces(photo)
    except CapHumanError as error:
        return {"file": path, "dropped": str(error)}
    if len(faces) != 1:
        return {"file": path, "dropped": f"{len(faces)} faces"}
    face = faces[0]
    center, side = head_square(face.landmarks, HEAD_SQUARE * MARGIN)
    size = int(min(STORED, round(side)))
    if size < 90:
        return {"file": path, "dropped": f"face too small ({side / HEAD_SQUARE / MARGIN:.0f} px)"}
    crop, matrix, covered = crop_square(photo, center, side, size)
    landmarks = face.landmarks.copy()
    landmarks[:, :2] = landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    landmarks[:, 2] *= size / side
    person = network("person_segmentation")(cv2.resize(crop, (256, 256))[None].astype(np.float32) / 255)[0].reshape(256, 256)
    ok, encoded = cv2.imencode(".webp", crop[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 86])
    vectors = {
        "mobilefacenet": recognise.mobilefacenet(recognise.mobilefacenet_crop(photo, face.landmarks)[None])[0][0],
        "dlib": recognise.dlib(recognise.dlib_crop(photo, face.landmarks)[None])[0],
    }
    return {
        "file": path, "webp": encoded.tobytes(), "size": size, "covered": covered / size,
        "landmarks": (landmarks / size).astype(np.float32), "expression": face.expression.astype(np.float32),
        "presence": face.presence, "face_px": side / HEAD_SQUARE / MARGIN,
        "person": np.packbits(cv2.resize(person, (64, 64), interpolation=cv2.INTER_AREA) > 0.5),
        "colours": measure_colours(crop, person, landmarks / size, covered / size), **vectors,
    }


def write_records(records: list[dict], out: Path) -> None:
    """Records to `out`: pictures.bin (WebP one after another) and records.npz; dropped photos to dropped.json."""
    kept = [r for r in records if "dropped" not in r]
    out.mkdir(parents=True, exist_ok=True)
    sizes = np.array([len(r["webp"]) for r in kept])
    beside = out / "pictures.bin.part"
    with open(beside, "wb") as f:
        for r in kept:
            f.write(r["webp"])
    os.replace(beside, out / "pictures.bin")
    columns = {
        "name": np.array([os.path.basename(r["file"]) for r in kept]),
        "offset": np.concatenate([[0], np.cumsum(sizes)]),
        **{k: np.stack([np.asarray(r[k]) for r in kept]) for k in (
            "size", "covered", "landmarks", "expression", "presence", "face_px", "person", "colours", "mobilefacenet", "dlib")},
    }
    columns["landmarks"] = columns["landmarks"].astype(np.float32)
    beside = out / "records.part.npz"
    np.savez_compressed(beside, **columns)
    os.replace(beside, out / "records.npz")
    dropped = {os.path.basename(r["file"]): r["dropped"] for r in records if "dropped" in r}
    (out / "dropped.json").write_text(json.dumps(dropped, indent=1))


def _begin_worker():
    os.environ["OMP_NUM_THREADS"] = "1"
    cv2.setNumThreads(1)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos, searched through")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only the first N photos")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)
    paths = sorted(str(p) for p in args.photos.rglob("*") if p.suffix.lower() in _PHOTO_ENDINGS)[: args.limit]
    if not paths:
        parser.error(f"no photos in {args.photos}")
    with multiprocessing.get_context("spawn").Pool(args.workers, _begin_worker) as pool:
        records = list(tqdm(pool.imap(measure_photo, paths, chunksize=8), total=len(paths), unit="photo"))
    write_records(records, args.out)
    kept = sum("dropped" not in r for r in records)
    print(f"{kept} of {len(paths)} photos kept; {args.out}/dropped.json names the others")


if __name__ == "__main__":
    main()
