"""Which kinds of blood cells an image of BCCD shows: a shallow CNN with an output for each kind.

The data is a folder with `train.csv`, `val.csv` and `test.csv`, whose column `label` names the kinds, as in `RBC;WBC`:
`--config.data.dir=DIR` (docs/data.md, "Several classes for each image").

Result: a mean average precision of 83.04 % on the 72 test images, seed 0 (docs/results.md). Nearly every image shows red and
white cells; of platelets, which are small, the average precision is 58.7 %, little more than the 54 % of images that show
them.
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=30),
        batch_size=32,
        task='multilabel',
        loss='bce',
        model=dict(name='shallow_cnn', dropout=0.3, kernel_init='lecun_normal'),
        data=dict(name='csv', image_size=96, augment='pad_crop(8)|flip_lr|flip_ud'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9, nesterov=True), learning_rate=0.02, warmup=dict(epochs=2),
                   l2=5e-4, clip_norm=5.0),
    )
