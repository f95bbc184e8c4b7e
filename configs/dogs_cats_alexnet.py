"""AlexNet on two classes that file names begin with: `train/cat.0.jpg`, `train/dog.0.jpg` and so on.

    jaxcnn train --config=dogs_cats_alexnet --workdir=runs/dogs_cats --config.data.dir=dogs-vs-cats
    jaxcnn predict --workdir=runs/dogs_cats dogs-vs-cats/test1/*.jpg --submission=submission.csv

The input is that of the fine-tuning tutorials after Caffe: images resized to 227x227, with blue, green and red from 0 to 255
less the means 104, 117 and 124. The network is Caffe's, with two groups and its constant of local response normalisation.
The tutorials start from Caffe's weights; here all layers are drawn, and biases start at 0.1.
Result: not yet measured.
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=40),
        batch_size=128,
        model=dict(name='alexnet_grouped', lrn_k=1.0, kernel_init='normal(0.01)', bias_init=0.1),
        data=dict(name='flat', image_size=227, resize='squash', augment='flip_lr',
                  normalize='bgr|standardize((0.407843, 0.458824, 0.486275), 0.00392157)'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, schedule='cosine', warmup=dict(epochs=1),
                   l2=5e-4, clip_norm=5.0),
    )
