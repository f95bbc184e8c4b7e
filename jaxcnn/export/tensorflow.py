"""A SavedModel for TensorFlow, by `jax.experimental.jax2tf`."""

from typing import Any

from jaxcnn.export.program import INPUT, OUTPUT, Program

FILE = 'saved_model'


def write(program: Program, path: str) -> None:
    """Write a program, with its weights and the names of the classes, into a folder with the signature `serving_default`."""
    import tensorflow as tf
    from jax.experimental import jax2tf
    height, width, channels = program.image_shape
    spec = tf.TensorSpec((None, height, width, channels), tf.uint8, name=INPUT)
    convert = jax2tf.convert(program.bound, polymorphic_shapes=[f'(batch, {height}, {width}, {channels})'],
                             native_serialization_platforms=('cpu', 'cuda'), with_gradient=False)

    class Module(tf.Module):
        """The exported function, and the names of the classes."""

        def __init__(self) -> None:
            super().__init__()
            self.class_names = tf.constant(program.class_names)

        @tf.function(input_signature=[spec], autograph=False)
        def __call__(self, images: Any) -> Any:
            """Return the probabilities (N, classes) of images, uint8 (N, H, W, C)."""
            return {OUTPUT: convert(images)[OUTPUT]}

        @tf.function(input_signature=[], autograph=False)
        def classes(self) -> Any:
            """Return the names of the classes."""
            return {'class_names': self.class_names}
    module = Module()
    tf.saved_model.save(module, path, signatures={'serving_default': module.__call__, 'classes': module.classes})
