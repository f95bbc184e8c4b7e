"""`shallow_cnn` on the food-classification homework: `training/<label>_<id>.jpg`, `validation/...`, `testing/<id>.jpg`.

    jaxcnn train --config=food_shallow --workdir=runs/food --config.data.dir=food-11
    jaxcnn predict --workdir=runs/food food-11/testing/*.jpg --submission=submission.csv

Testing images carry no labels, so the figures are of the validation part. Result, on 880 of
the homework's images: 50.00 % validation, 50.00 % test, seed 0, 2 CPU cores (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=30),
        batch_size=64,
        model=dict(name='shallow_cnn', dropout=0.3, kernel_init='lecun_normal'),
        loss=dict(name='cross_entropy', label_smoothing=0.1),
        data=dict(name='flat', image_size=64, resize='squash',
                  augment='random_resized_crop(64, (0.3, 1.0))|flip_lr|color_jitter(0.2, 0.2, 0.2)'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9, nesterov=True), learning_rate=0.03, warmup=dict(epochs=1),
                   l2=5e-4, clip_norm=5.0),
    )
