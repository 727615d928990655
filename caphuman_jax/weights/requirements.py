"""What a model still lacks: for photos to be usable at all, and for results as in training.

`caphuman import` asks before it writes anything, `caphuman check` asks about a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import HeadError, ModelFolderError
from caphuman_jax.face import arcface
from caphuman_jax.head.models import registry as heads
from caphuman_jax.models import facenet

FACENET_FILE = "20180402-114759-vggface2.pt"
_WIDTHS = {"facenet": facenet.WIDTH, "arcface": arcface.WIDTH, "mobilefacenet": 192}
"""How many numbers each recognizer gives."""


@dataclasses.dataclass(frozen=True)
class Lack:
    """Something that a model does not have.

    Attributes:
        part: What is missing.
        remedy: What brings it: an option of `caphuman import`, or what else to do.
        needed_for: "photos" (without it no photo can be used), "heads" (without it no head can be
            rendered, so no picture can be made) or "" (it works, but not as in training).
        effect: What happens without it, where nothing stops; "" otherwise.
    """

    part: str
    remedy: str
    needed_for: str = ""
    effect: str = ""

    def __str__(self) -> str:
        if self.needed_for:
            return f"{self.needed_for} need {self.part}: {self.remedy}"
        return f"without {self.part}, {self.effect}: {self.remedy}"


def lacks(
    config: ModelConfig,
    networks: Collection[str],
    trained_with_head: str | None,
    *,
    head_files_checked: bool = False,
    importing: bool = False,
) -> list[Lack]:
    """What a model of these networks lacks, the necessary first.

    Args:
        config: The model's configuration.
        networks: Names of the networks that its folder holds or will hold.
        trained_with_head: The head model that its CapFace was trained with; None: not known.
        head_files_checked: The files that the user has to obtain for the head model were found
            complete just now, wherever they are; otherwise they are looked for where the model
            will look for them.
        importing: The folder is about to be made, so that an option can name the files.
    """
    found = [
        *_of_identity(config, networks),
        *_of_head(config, networks, head_files_checked, importing),
    ]
    if trained_with_head and config.head != trained_with_head:
        found.append(
            Lack(
                f"the head model {trained_with_head}",
                f"--head {trained_with_head}",
                effect=f"hints come from the head model {config.head}, which these weights never "
                f"saw in training",
            )
        )
    return sorted(found, key=lambda lack: not lack.needed_for)


def recognition_width(recognizer: str) -> int | None:
    """How many numbers a recognizer ("facenet", "arcface/NAME", …) gives; None: not known."""
    return _WIDTHS.get(recognizer.partition("/")[0])


def _of_identity(config: ModelConfig, networks: Collection[str]) -> list[Lack]:
    found = []
    recognizer, _, which = config.identity.recognizer.partition("/")
    width = recognition_width(recognizer)
    if width not in (None, config.identity.recognition_width):
        found.append(
            Lack(
                f"a projector for the {width} numbers of {recognizer}; this one takes "
                f"{config.identity.recognition_width}",
                "the weights of another model",
                "photos",
            )
        )
    if recognizer == "facenet" and "facenet" not in networks:
        found.append(Lack("FaceNet", f"--facenet {FACENET_FILE}", "photos"))
    if recognizer == "arcface":
        found += _of_arcface(which)
    if config.identity.image_tokens == "clip":
        if "image_encoder" not in networks:
            found.append(Lack("CLIP's image encoder", "--image-encoder DIR", "photos"))
        if "face_parsing" not in networks:
            found.append(
                Lack(
                    "face parsing",
                    "--face-parsing 79999_iter.pth",
                    effect="landmarks decide what of a photo is face, including ears and hair at "
                    "its edge",
                )
            )
    if recognizer == "facenet" and "mtcnn_pnet" not in networks:
        found.append(
            Lack(
                "MTCNN",
                "--mtcnn DIR",
                effect="landmarks decide the crop that FaceNet sees, not the detector of training",
            )
        )
    return found


def _of_arcface(which: str) -> list[Lack]:
    try:
        network = arcface.find()
    except ModelFolderError:
        network = None
    if network is not None and which in ("", network.name):
        return []
    return [
        Lack(
            f"the ArcFace network {which}".rstrip(),
            "get insightface's pack buffalo_l or antelopev2 and name its .onnx file in "
            "CAPHUMAN_ARCFACE",
            "photos",
        )
    ]


def _of_head(
    config: ModelConfig, networks: Collection[str], checked: bool, importing: bool
) -> list[Lack]:
    source, path = heads.find(config.head)
    estimated = bool(source.networks) and set(source.networks) <= set(networks)
    found = []
    if source.setup and not checked:
        try:
            source.check(path, estimated)
        except HeadError as problem:
            reason = "" if source.setup in str(problem) else f" ({problem})"
            remedy = (
                f"{source.import_option}, or --head {heads.SHIPPED} for the shipped head"
                if importing and source.import_option
                else source.setup
            )
            found.append(Lack(f"{config.head.upper()}'s files{reason}", remedy, "heads"))
    if source.networks and not estimated:
        found.append(
            Lack(
                source.networks_title,
                source.networks_option,
                effect=f"heads are fitted to landmarks; CapHuman's weights were trained on heads "
                f"that it estimates for {config.head}",
            )
        )
    return found
