"""What CapHuman's paper reports on its own benchmark, for a look next to one's own figures."""

from __future__ import annotations

COLUMNS = {
    "identity": ("up", "cosine of FaceNet's vectors"),
    "CLIP score": ("up", "text and picture"),
    "shape": ("down", "RMSE of DECA's parameters"),
    "pose": ("down", "RMSE of DECA's parameters"),
    "expression": ("down", "RMSE of DECA's parameters"),
    "light": ("down", "RMSE of DECA's parameters"),
}
"""{column: (direction, what it is)}"""

ROWS = {
    "DreamBooth + landmarks": (0.686, 18.7, 0.154, 0.044, 0.192, 0.173),
    "FastComposer + landmarks": (0.619, 21.5, 0.185, 0.061, 0.212, 0.186),
    "CapHuman": (0.836, 22.6, 0.113, 0.056, 0.135, 0.105),
}

NOTE = (
    "Second-hand: copied from reports of the paper (Liang et al., CapHuman, CVPR 2024, benchmark "
    "HumanIPHC), not measured here. Its people, prompts and heads were never published, and its "
    "recognizer and head estimator are not those of this report, so these numbers cannot be "
    "compared with the ones above digit by digit."
)
