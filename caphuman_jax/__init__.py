"""CapHuman on JAX: a photo of a face, a sentence and a head in; pictures of that person out.

import caphuman_jax
pipe = caphuman_jax.load("mini")
result = pipe(reference="me.jpg", prompt="a photo of a smiling person", head={"yaw": 20})
"""

import os

from caphuman_jax.version import __version__

# onnxruntime otherwise looks up its maker's server and keeps a device id; it reads this when it is
# imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = ["__version__", "load"]


def load(model="mini", **options):
    """Load a shipped model ("mini") or a model folder as a `pipeline.pipeline.Pipeline`; see
    `pipeline.loading.load` for the options.
    """
    from caphuman_jax.runtime.platforms import spare_libtpu

    spare_libtpu()
    from caphuman_jax.pipeline import loading  # brings JAX, which `caphuman --help` does not need

    return loading.load(model, **options)
