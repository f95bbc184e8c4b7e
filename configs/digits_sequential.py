"""A network written as a string, on scikit-learn's handwritten digits in their own 8x8 pixels.

    jaxcnn train --config=digits_sequential --workdir=runs/sequential

Change the layers here or on the command line: `--config.model.layers='flatten|dense'`. Result: 98.61 % on the 359 test
images, seed 0, 2 CPU cores, jax 0.10.2.
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=40),
        batch_size=64,
        model=dict(name='sequential', layers='conv(32)|norm|relu|conv(32)|norm|relu|max_pool(2)|'
                                             'conv(64)|norm|relu|conv(64)|norm|relu|max_pool(2)|'
                                             'flatten|dense(128)|relu|dropout(0.3)|dense'),
        data=dict(name='digits', augment='pad_crop(1)'),
        optim=dict(optimizer='adam', learning_rate=2e-3, schedule='cosine', warmup=dict(epochs=1)),
        eval=dict(every=dict(epochs=4)),
        parallel=dict(steps_per_dispatch=25),
    )
