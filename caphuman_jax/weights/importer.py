"""`import_model`: the weight files that people have → a model folder.

First all is planned from names and shapes alone, and whatever does not fit is said; then tensor
after tensor is read, brought into our layout and written, so that memory holds one of them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import traverse_util

from caphuman_jax.config import SD15, ModelConfig
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.head.models import registry as heads
from caphuman_jax.io import safetensors_file
from caphuman_jax.models import registry
from caphuman_jax.weights import convert, face_names, lora, model_folder, sources, tokenizer_files
from caphuman_jax.weights.checkpoint_files import Checkpoint, open_checkpoint
from caphuman_jax.weights.known_files import Identification
from caphuman_jax.weights.names import table
from caphuman_jax.weights.sources import Found, Source

DTYPES = {
    "keep": None,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
_FLOATS = [
    np.dtype(t)
    for t in (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
    )
]
_SHOWN = 20  # keys of each kind in a message
_PROVIDERS = {
    "unet": ("base", "caphuman"),
    "vae": ("vae", "base", "caphuman"),
    "text": ("clip", "base", "caphuman"),
    "image_encoder": ("image-encoder", "clip", "caphuman"),
    "capface": ("caphuman",),
    "identity": ("caphuman",),
}
"""Network → the options that may give it, the first before the others."""


@dataclasses.dataclass
class _Piece:
    """One parameter: where it comes from, and its shape in our layout."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    checkpoint: Checkpoint | None = None
    key: str = ""
    value: np.ndarray | None = None

    def read(self) -> np.ndarray:
        if self.value is not None:
            return self.value
        assert self.checkpoint is not None
        return convert.to_ours(self.path, self.checkpoint[self.key], self.shape)


Pieces = dict[str, _Piece]


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
    mtcnn: str | Path | None = None,
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
    overwrite: bool = False,
) -> list[str]:
    """Make a model folder; the report, line by line.

    caphuman: the published checkpoint, which holds everything; base: a Stable Diffusion 1 file or
    diffusers folder, whose UNet, VAE and text encoder are used instead; vae, clip, image_encoder:
    these parts from elsewhere. facenet, face_parsing (files) and mtcnn (a folder of pnet.pt,
    rnet.pt, onet.pt): what identity was measured with in training; deca: what heads were,
    deca_model.tar (then head is "flame"); flame: FLAME's file or folder, looked at and not kept.
    loras: (file, strength), added to UNet and text encoder; controlnets: (file, name or None).
    dtype: "keep", "float32", "float16", "bfloat16". ema: the moving averages of a training file.
    config: sizes (default: what an exported file says, else Stable Diffusion 1.5). prediction
    ("epsilon", "v") and
    zero_snr: default what the base says. head: "anny" (default) or "flame". init: without
    `caphuman`, CapFace as a copy of the UNet's encoder and a fresh projector.
    ignore: beginnings of keys that are left out although nobody knows them.
    Raises ModelFolderError: files that cannot be read, parts that are missing, keys that are
    missing, surplus or misshapen."""
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
        raise SettingError("nothing to import: give --caphuman FILE, or --base FILE with --init")
    by_deca = heads.estimated_by("deca_encoder")
    if deca and head not in (None, by_deca):
        raise SettingError(
            f"--deca estimates heads of {by_deca}: it goes with --head {by_deca}, not --head {head}"
        )
    faces = _face_files(facenet, face_parsing, mtcnn, deca)
    if flame and by_deca:
        heads.find(by_deca)[0].check(Path(flame).expanduser(), bool(deca))
    with model_folder.writing(out, overwrite=overwrite) as beside:
        opened: list[Source] = []
        try:
            for option, path in given.items():
                if path:
                    opened.append(sources.read(option, path))
            exported = next((source for source in opened if source.config), None)
            found = exported.config if exported else None
            head = head or (by_deca if deca else found.head if found else heads.SHIPPED)
            config = config or found or SD15
            chosen = _choose(opened, config, init)
            controls = _controlnets(controlnets, opened, config)
            opened += [source for source, _ in controls.values() if source not in opened]
            identified = {path: Identification(path) for path in _files(opened, loras, faces)}
            config = _settings(config, opened, controls, prediction, zero_snr, name, head)
            scale = chosen["vae"].vae_scale
            if scale is not None and abs(scale - config.vae.scaling_factor) > 1e-6:
                raise ModelFolderError(
                    f"the VAE of {chosen['vae'].path} scales latents by {scale}, Stable Diffusion "
                    f"1's by {config.vae.scaling_factor}: it is another model's"
                )

            wanted = {
                network: _flat(shapes) for network, (_, shapes) in registry.abstract(config).items()
            }
            plan, used = _plan(
                config,
                wanted,
                {n: s.networks[n] for n, s in chosen.items()}
                | {n: f for n, (_, f) in controls.items()},
                ema,
            )
            _check_unknown(opened, ignore)
            if init:
                plan |= _fresh(config, wanted, plan["unet"])
            adapters = [(lora.read_file(path, config), strength) for path, strength in loras]
            lora.check(
                {n: traverse_util.unflatten_dict(shapes, sep=".") for n, shapes in wanted.items()},
                adapters,
            )

            stored = DTYPES[dtype]
            manifest = {n: _write(beside, n, plan[n], stored, adapters) for n in wanted}
            manifest |= {n: _write_face_network(beside, n, path) for n, path in faces.items()}
            tokenizer_files.write(beside / "tokenizer", _tokenizer(opened))
            files = [_describe(path, identity) for path, identity in identified.items()]
            unused = _unused(opened, chosen, controls, used, ignore)
            model_folder.write_description(
                beside,
                config,
                manifest,
                {
                    "imported": {
                        "networks": {n: _origin(plan[n]) for n in wanted},
                        "files": files,
                        "unused": unused,
                        "loras": [
                            {"file": Path(path).name, "strength": strength}
                            for path, strength in loras
                        ],
                        "moving_averages": ema,
                    },
                    "trained_with_head": exported.trained_with_head
                    if exported
                    else SD15.head
                    if caphuman
                    else None,
                },
            )
        finally:
            for source in opened:
                source.close()
    return _report(out, config, plan, files, unused, loras, manifest)


def _choose(opened: list[Source], config: ModelConfig, init: bool) -> dict[str, Source]:
    """Network → the source that gives it. Raises ModelFolderError where one is missing."""
    by_option = {source.option: source for source in opened}
    for option, expected in (
        ("caphuman", "capface"),
        ("base", "unet"),
        ("vae", "vae"),
        ("image-encoder", "image_encoder"),
    ):
        if option in by_option and expected not in by_option[option].networks:
            source = by_option[option]
            raise ModelFolderError(
                f"--{option} {source.path} holds no {expected}; it holds {_holds(source)}"
            )
    if "clip" in by_option and not {"text", "image_encoder"} & set(by_option["clip"].networks):
        raise ModelFolderError(
            f"--clip {by_option['clip'].path} holds no CLIP encoder; it holds "
            f"{_holds(by_option['clip'])}"
        )
    chosen, missing = {}, []
    for network, options in _PROVIDERS.items():
        if (network == "image_encoder" and config.image_encoder is None) or (
            init and network in ("capface", "identity")
        ):
            continue
        source = next(
            (by_option[o] for o in options if o in by_option and network in by_option[o].networks),
            None,
        )
        if source is None:
            missing.append(f"{network} (give {' or '.join(f'--{o}' for o in options)})")
        else:
            chosen[network] = source
    if missing:
        more = (
            "; --init makes a CapFace and projector that are not trained yet"
            if any(m.startswith("capface") for m in missing)
            else ""
        )
        raise ModelFolderError(f"these parts are missing: {', '.join(missing)}{more}")
    return chosen


def _holds(source: Source) -> str:
    there = sorted(source.networks, key=[*_PROVIDERS, *source.networks].index)
    return ", ".join(there) or (
        f"only keys that are not known, such as {source.unknown[0]}"
        if source.unknown
        else "no weights"
    )


def _controlnets(
    given, opened: list[Source], config: ModelConfig
) -> dict[str, tuple[Source, Found]]:
    """Network "controlnet_NAME" → its source and what is there; those of an exported folder come
    along.
    """
    found = {
        name: (source, f)
        for source in opened
        for name, f in source.networks.items()
        if name.startswith("controlnet_")
    }
    for path, name in given:
        source = sources.read("controlnet", path)
        opened.append(source)  # so that it is closed
        if "controlnet" not in source.networks:
            raise ModelFolderError(
                f"--controlnet {path} holds no ControlNet; it holds {_holds(source)}"
            )
        network = f"controlnet_{name or _control_name(source.path)}"
        if not re.fullmatch(r"\w[\w.-]*", network) or network in found:
            raise ModelFolderError(
                f"--controlnet {path}: the name {network.removeprefix('controlnet_')!r} is taken "
                f"or no name; give FILE=NAME"
            )
        found[network] = source, source.networks["controlnet"]
    return found


def _control_name(path: Path) -> str:
    """control_v11p_sd15_openpose.pth → openpose."""
    stem = re.sub(r"\W+", "_", path.name if path.is_dir() else path.name.split(".")[0])
    return re.sub(r"^(lllyasviel_)?(control(net)?_?)?(v\d+\w*?_)?(sd\d*_)?", "", stem) or stem


def _settings(config, opened, controls, prediction, zero_snr, name, head) -> ModelConfig:
    base = next((s for s in opened if s.option == "base"), None) or next(
        s for s in opened if s.option != "controlnet"
    )
    kind = prediction or base.prediction or config.diffusion.prediction_type
    rescaled = next(
        z for z in (zero_snr, base.zero_snr, config.diffusion.zero_terminal_snr) if z is not None
    )
    if rescaled and kind != "v":
        raise SettingError(
            "zero terminal SNR needs --prediction v: at the last step there is nothing but noise "
            "to predict from noise"
        )
    heads = base.heads or config.unet.heads
    if heads != config.unet.heads:
        raise ModelFolderError(
            f"{base.path} has {heads} attention heads; this configuration has {config.unet.heads}"
        )
    if (
        rescaled and config.sampling == SD15.sampling
    ):  # such a model has to be asked at the last timestep (arXiv 2305.08891, sections 3.3 and 3.4)
        config = dataclasses.replace(
            config,
            sampling=dataclasses.replace(config.sampling, spacing="trailing", guidance_rescale=0.7),
        )
    return dataclasses.replace(
        config,
        name=name or config.name,
        head=head,
        controlnets=tuple(n.removeprefix("controlnet_") for n in controls),
        diffusion=dataclasses.replace(
            config.diffusion, prediction_type=kind, zero_terminal_snr=rescaled
        ),
    )


def _plan(
    config: ModelConfig, wanted: Mapping[str, dict], found: Mapping[str, Found], ema: bool
) -> tuple[dict[str, Pieces], set]:
    """Every network's parameters, and the (file, key) that they take. Raises ModelFolderError with
    all that does not fit.
    """
    plan, used, problems, averaged = {}, set(), [], 0
    for network, f in found.items():
        names = table(network, config, wanted[network], f.form)
        keys = dict(f.keys)
        if ema and network in ("unet", "vae"):
            averages = sources.moving_averages(f, list(names), network)
            averaged += len(averages)
            keys |= averages
        missing = [name for name in names if name not in keys]
        surplus = [f.keys[name] for name in f.keys if name not in names]
        misshapen, pieces = [], {}
        for name, path in names.items():
            if name in keys:
                key = keys[name]
                shape, dtype, ours = (
                    f.checkpoint.shape(key),
                    f.checkpoint.dtype(key),
                    tuple(wanted[network][path].shape),
                )
                if not convert.fits(path, shape, ours):
                    misshapen.append(
                        f"{key} {_shape(shape)}, not "
                        f"{_shape(convert.shape_of_theirs(path, name, ours, f.form))}"
                    )
                elif dtype not in _FLOATS:
                    misshapen.append(f"{key} of type {dtype}")
                pieces[path] = _Piece(path, ours, dtype, f.checkpoint, key)
                used.add((f.path, key))
        if missing or surplus or misshapen:
            kind = (
                sources.another_kind(f, config)
                if network == "unet" or network.startswith("controlnet_")
                else None
            )
            if kind:
                raise ModelFolderError(
                    f"{f.path} is {kind}; only Stable Diffusion 1 and what was trained from it can "
                    f"be used"
                )
            said = [
                _some("missing", missing),
                _some("surplus", surplus),
                _some("misshapen", misshapen),
            ]
            problems.append(f"{network} of {f.path}: " + "; ".join(filter(None, said)))
        plan[network] = pieces
    if problems:
        raise ModelFolderError("the weights do not fit. " + " | ".join(problems))
    if ema and not averaged:
        raise ModelFolderError(
            "--ema: no file has moving averages (keys that begin with model_ema.) of its UNet or "
            "VAE"
        )
    return plan, used


def _check_unknown(opened: list[Source], ignore: Sequence[str]) -> None:
    problems = []
    for source in opened:
        left = [key for key in source.unknown if not key.startswith(tuple(ignore))]
        if left:
            problems.append(f"{source.path}: {_some('surplus', left)}")
    if problems:
        raise ModelFolderError(
            "keys that belong to no network: "
            + " | ".join(problems)
            + " (--ignore PREFIX leaves out what you do not need)"
        )


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"


def _fresh(config: ModelConfig, wanted: Mapping[str, dict], unet: Pieces) -> dict[str, Pieces]:
    """Where training starts: CapFace's encoder a copy of the UNet's
    (`models.capface.start_from_unet`), the rest initialized.
    """
    import jax

    plan = {}
    for network in registry.TRAINABLE:
        values = _flat(registry.init(config, jax.random.key(0), only=(network,))[network][1])
        plan[network] = {
            path: unet[path]
            if network == "capface" and path.startswith("encoder.")
            else _Piece(path, tuple(leaf.shape), np.dtype(np.float32), value=np.asarray(leaf))
            for path, leaf in values.items()
        }
    return plan


def _write(
    beside: Path, network: str, pieces: Pieces, dtype: Any, adapters: list
) -> dict[str, Any]:
    specs = {path: (np.dtype(dtype or piece.dtype), piece.shape) for path, piece in pieces.items()}

    def arrays() -> Iterator[np.ndarray]:
        for path in safetensors_file.order(specs):
            value = pieces[path].read()
            if network in lora.NETWORKS and adapters:
                value = lora.merged(network, path, value, adapters)
            yield model_folder.cast(value, specs[path][0], f"{network}: {path}")

    return safetensors_file.write(beside / f"{network}.safetensors", specs, arrays())


def _face_files(facenet, face_parsing, mtcnn, deca) -> dict[str, Path]:
    """{network of `models.OPTIONAL`: its file}."""
    files = {"facenet": facenet, "face_parsing": face_parsing, "deca_encoder": deca}
    if mtcnn:
        files |= {
            f"mtcnn_{stage}": Path(mtcnn) / f"{stage}.pt" for stage in ("pnet", "rnet", "onet")
        }
    return {name: Path(path).expanduser() for name, path in files.items() if path}


def _write_face_network(beside: Path, name: str, path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        _, params = face_names.load(name, checkpoint)
    values = _flat(params)
    specs = {key: (value.dtype, value.shape) for key, value in values.items()}
    return safetensors_file.write(
        beside / f"{name}.safetensors",
        specs,
        (values[key] for key in safetensors_file.order(specs)),
    )


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep=".")


def _tokenizer(opened: list[Source]) -> Path | None:
    """The tokenizer that came with the text encoder, or with what stands nearest to it."""
    found = {source.option: source.tokenizer for source in opened if source.tokenizer}
    return next((found[option] for option in _PROVIDERS["text"] if option in found), None)


def _files(opened: list[Source], loras, faces: Mapping[str, Path]) -> list[Path]:
    paths = [
        file for source in opened for checkpoint in source.checkpoints for file in checkpoint.files
    ]
    return list(
        dict.fromkeys([*paths, *(Path(path).expanduser() for path, _ in loras), *faces.values()])
    )


def _describe(path: Path, identity: Identification) -> dict[str, Any]:
    md5, known = identity.result()
    return {"file": _short(path), "md5": md5, "known": known}


def _origin(pieces: Pieces) -> str:
    names = Counter(
        _short(piece.checkpoint.path) if piece.checkpoint else "fresh numbers"
        for piece in pieces.values()
    )
    return " and ".join(names)


def _short(path: Path) -> str:
    """A file's name; with that of its folder where all files are called alike."""
    return (
        f"{path.parent.name}/{path.name}"
        if path.name.startswith(("diffusion_pytorch_model", "model.", "pytorch_model"))
        else path.name
    )


def _unused(opened, chosen, controls, used: set, ignore) -> dict[str, dict[str, int]]:
    """File → what of it was left out → how many tensors."""
    unused: dict[str, dict[str, int]] = {}
    for source in opened:
        groups: Counter = Counter()
        for group, keys in source.extras.items():
            groups[group] += sum(
                (c.path, key) not in used for key in keys for c in source.checkpoints if key in c
            )
        for network, found in source.networks.items():
            groups[f"{network}, of which another file's is used"] += sum(
                (found.path, key) not in used for key in found.keys.values()
            )
        groups["left out as asked (--ignore)"] += sum(
            key.startswith(tuple(ignore)) for key in source.unknown
        )
        groups = Counter({group: count for group, count in groups.items() if count})
        if groups:
            unused[source.path.name] = dict(groups)
    return unused


def _report(out, config, plan, files, unused, loras, manifest) -> list[str]:
    lines = []
    for network, pieces in plan.items():
        types = Counter(str(piece.dtype) for piece in pieces.values())
        lines.append(f"{network}: {len(pieces)} tensors of {_origin(pieces)} ({', '.join(types)})")
    lines += [f"LoRA {Path(path).name} added with strength {strength}" for path, strength in loras]
    lines += [f"{entry['file']} is {entry['known']}" for entry in files if entry["known"]]
    lines += [
        f"not used of {name}: {count} {'tensor' if count == 1 else 'tensors'}, {group}"
        for name, groups in unused.items()
        for group, count in groups.items()
    ]
    size = sum(entry["bytes"] for entry in manifest.values()) / 2**30
    lines.append(
        f"{out}: {config.name}, {size:.2f} GiB, predicts {config.diffusion.prediction_type}, head "
        f"{config.head}"
    )
    source, _ = heads.find(config.head)
    if source.setup:
        lacking = set(source.networks) - set(manifest)
        lines.append(
            f"to use it, {source.setup}"
            + ("; without --deca, heads are fitted to landmarks" if lacking else "")
        )
    return lines


def read_configuration(given: str) -> ModelConfig | None:
    """`--config`: "sd15", or a JSON file: a configuration, or a model folder's config.json."""
    if given == "sd15":
        return SD15
    try:
        content = json.loads(Path(given).expanduser().read_text())
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
