"""`import_model`: published weight files → a model folder.

`import_plan` decides from names and shapes alone what is taken from where, and reports whatever
does not fit. Then the tensors are read, converted and written one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import traverse_util

from caphuman_jax.config import SD15, ModelConfig
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.head.models import registry as heads
from caphuman_jax.io import json_reader, safetensors_file
from caphuman_jax.models import registry
from caphuman_jax.weights import (
    clip_files,
    face_names,
    folder_description,
    hub,
    import_plan,
    import_report,
    lora,
    model_card,
    model_folder,
    network_configs,
    requirements,
    sources,
    tokenizer_files,
)
from caphuman_jax.weights.checkpoint_files import open_checkpoint
from caphuman_jax.weights.known_files import Identification
from caphuman_jax.weights.sources import Source

DTYPES = {
    "keep": None,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def import_model(
    out: str | Path,
    *,
    caphuman: str | Path | None = None,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    clip: str | Path | None = None,
    image_encoder: str | Path | None = None,
    facenet: str | Path | None = None,
    face_parsing: str | Path | None = None,
    mtcnn: str | Path | Mapping[str, Path] | None = None,
    deca: str | Path | None = None,
    flame: str | Path | None = None,
    loras: Sequence[tuple[str | Path, lora.Strength]] = (),
    controlnets: Sequence[tuple[str | Path, str | None]] = (),
    dtype: str = "keep",
    ema: bool = False,
    config: ModelConfig | None = None,
    prediction: str | None = None,
    zero_snr: bool | None = None,
    name: str | None = None,
    head: str | None = None,
    init: bool = False,
    ignore: Sequence[str] = (),
    partial: bool = False,
    overwrite: bool = False,
    download: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Make a model folder of PyTorch files.

    Args:
        out: The folder to make.
        caphuman: The published checkpoint, which holds every network.
        base: A Stable Diffusion 1 file or diffusers folder, whose UNet, VAE and text encoder are
            used instead.
        vae, clip, image_encoder: Files or folders that give these parts instead.
        facenet, face_parsing: Files of the networks that identities were measured with in training.
        mtcnn: A folder with pnet.pt, rnet.pt and onet.pt, or {"pnet": its file, …}.
        deca: deca_model.tar, whose encoder estimates heads; implies the head model that it is for.
        flame: FLAME's file or folder; checked, not stored; implies the head model flame.
        loras: (file, strength) of each LoRA to merge into UNet and text encoder.
        controlnets: (file, name) of each ControlNet; name None: from the file's name.
        dtype: "keep", "float32", "float16" or "bfloat16", for the stored weights.
        ema: Take the moving averages of a training file.
        config: Sizes; None: those of an exported file, else of Stable Diffusion 1.5.
        prediction: "epsilon" or "v"; None: what the base says.
        zero_snr: Whether the schedule has zero terminal SNR; None: what the base says.
        name: Of the model.
        head: A name of `head.models.registry.HEADS`; None: the one that the weights were trained
            with, or the shipped one where nothing was trained.
        init: Without `caphuman`: make CapFace a copy of the UNet's encoder, and a new projector.
        ignore: Prefixes of unknown keys to leave out.
        partial: Make the folder even if no photo can be used with it, or no head rendered.
        overwrite: Replace an existing model folder.
        download: Fetch names of the hub (ORG/NAME) that its local cache does not hold.
        dry_run: Only report what would be taken from where, what is left out and what is wrong.

    Returns:
        The report, line by line.

    Raises:
        SettingError: Arguments that contradict each other; without `partial`, what photos or heads
            still need.
        HeadError: What `flame` names is not all of FLAME.
        ModelFolderError: A file that cannot be read, a part that is missing, or keys that are
            missing, surplus or misshapen.
    """
    if dtype not in DTYPES:
        raise SettingError(f"dtype is {dtype}; there are {', '.join(DTYPES)}")
    if init and caphuman:
        raise SettingError(
            "--init is for a model without --caphuman, which holds a trained CapFace"
        )
    given = {
        "caphuman": caphuman,
        "base": base,
        "vae": vae,
        "clip": clip,
        "image-encoder": image_encoder,
    }
    if not any(given.values()):
        raise SettingError(
            "nothing to import: give --from DIR, --caphuman FILE, or --base FILE with --init"
        )
    by_deca = heads.estimated_by("deca_encoder")
    if deca and head not in (None, by_deca):
        raise SettingError(
            f"--deca estimates heads of {by_deca}: it goes with --head {by_deca}, not --head {head}"
        )
    if flame and head not in (None, by_deca):
        raise SettingError(f"--flame is for --head {by_deca}, not for --head {head}")
    faces = _face_files(facenet, face_parsing, mtcnn, deca)
    if flame and by_deca:
        heads.find(by_deca)[0].check(Path(flame).expanduser(), bool(deca))
    loras = [(hub.locate(path, download), strength) for path, strength in loras]
    writing = model_folder.writing(out, overwrite=overwrite)
    with contextlib.nullcontext(Path(out)) if dry_run else writing as folder:
        opened: list[Source] = []
        try:
            for option, path in given.items():
                if path:
                    opened.append(sources.read(option, path, download))
            exported = next((source for source in opened if source.config), None)
            found = exported.config if exported else None
            trained_with = (
                exported.trained_with_head if exported else SD15.head if caphuman else None
            )
            head = head or (
                by_deca if deca or flame else found.head if found else trained_with or heads.SHIPPED
            )
            config = config or found or SD15
            chosen = import_plan.choose(opened, config, init)
            config = network_configs.follow(config, chosen)
            controls = import_plan.find_controlnets(controlnets, opened, download)
            opened += [source for source, _ in controls.values() if source not in opened]
            config = import_plan.merge_config(
                config, opened, controls, prediction, zero_snr, name, head
            )
            lacking = requirements.lacks(
                config,
                [*chosen, *faces],
                trained_with,
                head_files_checked=bool(flame),
                importing=True,
            )
            refusals = [] if partial else _refusals(lacking)
            if refusals and not dry_run:
                raise SettingError(". Nothing was written. ".join(refusals))
            scale = chosen["vae"].vae_scale
            if scale is not None and abs(scale - config.vae.scaling_factor) > 1e-6:
                raise ModelFolderError(
                    f"the VAE of {chosen['vae'].path} scales latents by {scale}, Stable Diffusion "
                    f"1's by {config.vae.scaling_factor}: it is another model's"
                )

            wanted = {
                network: import_plan.flat(shapes)
                for network, (_, shapes) in registry.abstract(config).items()
            }
            plan, used = import_plan.make_plan(
                config,
                wanted,
                {n: s.networks[n] for n, s in chosen.items()}
                | {n: f for n, (_, f) in controls.items()},
                ema,
            )
            import_plan.check_unknown(opened, ignore)
            if not loras:  # which would make the text encoder another one
                projections = clip_files.find(chosen)
                plan |= {clip_files.NAME: projections} if projections else {}
                used |= {
                    (chosen["text"].networks["text"].path, one.key) for one in projections.values()
                }
            if init:
                plan |= import_plan.fresh_networks(config, plan["unet"])
            adapters = [(lora.read_file(path, config), strength) for path, strength in loras]
            lora.check(
                {n: traverse_util.unflatten_dict(shapes, sep=".") for n, shapes in wanted.items()},
                adapters,
            )

            stored = DTYPES[dtype]
            unused = import_report.unused_tensors(opened, used, ignore)
            if dry_run:
                for network, path in faces.items():
                    _read_face_network(network, path)
                folder_description.check_names(config, dict.fromkeys([*wanted, *faces]))
                if Path(out).expanduser().exists() and not overwrite:
                    refusals.append(f"{out} exists already; --overwrite replaces it")
                return import_report.dry_run(
                    out, config, plan, unused, loras, faces, lacking, flame, stored, refusals
                )
            identified = {path: Identification(path) for path in _files(opened, loras, faces)}
            # The small files first: one that is not what it should be is noticed within seconds.
            measuring = {n: _write_face_network(folder, n, path) for n, path in faces.items()}
            folder_description.check_names(config, dict.fromkeys([*wanted, *faces]))
            manifest = {n: _write(folder, n, plan[n], stored, adapters) for n in plan} | measuring
            written = tokenizer_files.write(folder / "tokenizer", _tokenizer(opened))
            files = [
                import_report.describe(path, identity) for path, identity in identified.items()
            ]
            written += model_folder.write_description(
                folder,
                config,
                manifest,
                {
                    "imported": {
                        "networks": {n: import_report.origin(plan[n]) for n in plan},
                        "files": files,
                        "unused": unused,
                        "loras": [
                            {"file": Path(path).name, "strength": strength}
                            for path, strength in loras
                        ],
                        "moving_averages": ema,
                    },
                    "trained_with_head": trained_with,
                },
            )
            written += model_card.write(folder, replaced=Path(out).expanduser())
            model_folder.check_written(folder, written)
        finally:
            for source in opened:
                source.close()
    return import_report.report(out, config, plan, files, unused, loras, manifest, lacking, flame)


def _refusals(lacking: Sequence[requirements.Lack]) -> list[str]:
    """What stops an import that is not partial, and what to do."""
    needed = [str(lack) for lack in lacking if lack.needed_for]
    advice = (
        "docs/published-weights.md says where the files are published; --partial makes the folder "
        "without them"
    )
    return ["; ".join(needed), advice] if needed else []


def _write(
    folder: Path, network: str, pieces: import_plan.Pieces, dtype: Any, adapters: list
) -> dict[str, Any]:
    specs = {path: (np.dtype(dtype or piece.dtype), piece.shape) for path, piece in pieces.items()}

    def arrays() -> Iterator[np.ndarray]:
        for path in safetensors_file.order(specs):
            value = pieces[path].read()
            if network in lora.NETWORKS and adapters:
                value = lora.merged(network, path, value, adapters)
            yield model_folder.cast(value, specs[path][0], f"{network}: {path}")

    return safetensors_file.write(folder / f"{network}.safetensors", specs, arrays())


def _face_files(facenet, face_parsing, mtcnn, deca) -> dict[str, Path]:
    """{network of `models.OPTIONAL`: its file}."""
    files = {"facenet": facenet, "face_parsing": face_parsing, "deca_encoder": deca}
    if mtcnn:
        stages = ("pnet", "rnet", "onet")
        if not isinstance(mtcnn, Mapping):
            mtcnn = {stage: Path(mtcnn) / f"{stage}.pt" for stage in stages}
        files |= {f"mtcnn_{stage}": mtcnn[stage] for stage in stages}
    return {name: Path(path).expanduser() for name, path in files.items() if path}


def _read_face_network(name: str, path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        _, params = face_names.load(name, checkpoint)
    return import_plan.flat(params)


def _write_face_network(folder: Path, name: str, path: Path) -> dict[str, Any]:
    values = _read_face_network(name, path)
    specs = {key: (value.dtype, value.shape) for key, value in values.items()}
    return safetensors_file.write(
        folder / f"{name}.safetensors",
        specs,
        (values[key] for key in safetensors_file.order(specs)),
    )


def _files(opened: list[Source], loras, faces: Mapping[str, Path]) -> list[Path]:
    paths = [
        file for source in opened for checkpoint in source.checkpoints for file in checkpoint.files
    ]
    return list(
        dict.fromkeys([*paths, *(Path(path).expanduser() for path, _ in loras), *faces.values()])
    )


def read_configuration(given: str) -> ModelConfig | None:
    """`--config`: "sd15", or a JSON file: a configuration, or a model folder's config.json."""
    if given == "sd15":
        return SD15
    try:
        content = json_reader.read(Path(given).expanduser())
    except FileNotFoundError as error:
        raise SettingError(
            f"--config {given}: there is no such file, and sd15 is the only configuration with a "
            f"name"
        ) from error
    except (OSError, ValueError) as error:
        raise SettingError(f"--config {given} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SettingError(f"--config {given} is not a JSON object")
    try:
        return ModelConfig.from_dict(content.get("config", content))
    except (TypeError, AttributeError) as error:
        raise SettingError(f"--config {given} is not a configuration: {error}") from error


def _tokenizer(opened: list[Source]) -> Path | None:
    """The tokenizer that came with the text encoder, or with what stands nearest to it."""
    found = {source.option: source.tokenizer for source in opened if source.tokenizer}
    return next(
        (found[option] for option in import_plan.PROVIDERS["text"] if option in found), None
    )
