"""Which of the 478 landmarks of MediaPipe's face mesh is which."""

COUNT = 478

OUTER_EYE_CORNERS = (33, 263)
"""The person's right and left eye."""

# fmt: off
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)
"""The outline of the face, from the forehead clockwise as seen in the picture."""

IBUG_68 = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389, 71, 63,
    105, 66, 107, 336, 296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305, 33, 160, 158,
    133, 153, 144, 362, 385, 387, 263, 373, 380, 61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84,
    181, 78, 82, 13, 312, 308, 317, 14, 87,
)
"""The 68 points of the iBUG annotation (arXiv 1803.07835 uses the same), in iBUG's order: jaw,
brows, nose, eyes, lips; right and left are those of the picture."""
# fmt: on
