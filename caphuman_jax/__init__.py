"""CapHuman on JAX: a photo of a face, a sentence and a head in; pictures of that person out.

import caphuman_jax
pipe = caphuman_jax.load("mini")
result = pipe(reference="me.jpg", prompt="a photo of a smiling person", head={"yaw": 20})
"""

from caphuman_jax.version import __version__

__all__ = ["__version__", "load"]


def load(model="mini", **options):
    """A `caphuman_jax.pipeline.pipeline.Pipeline` of a shipped model ("mini") or a model folder;
    see `pipeline.load`.
    """
    from caphuman_jax.pipeline import pipeline  # brings jax, which `caphuman --help` has no use for

    return pipeline.load(model, **options)
