"""`leedl_cnn`, the classifier of Hung-yi Lee's homework, on food: `training/<label>_<id>.jpg`, `testing/<id>.jpg`, ....

    jaxcnn train --config=food11_leedl --workdir=runs/food11 --config.data.dir=food-11
    jaxcnn predict --workdir=runs/food11 food-11/testing --submission=submission.csv

The settings are those of the course's example: images of 128 x 128 pixels without augmentation, Adam with a constant rate of
3e-4 and an L2 penalty of 1e-5, gradients clipped to the norm 10, 8 epochs, and the checkpoint with the best validation
accuracy. docs/homework.md improves on it step by step. Result: 42.00 % of the 550 testing images of a small stand-in
for the homework's data, with images of 64 x 64 pixels, seed 0.
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=8),
        batch_size=64,
        model='leedl_cnn',
        data=dict(name='flat', image_size=128, resize='squash', normalize='none'),
        optim=dict(optimizer='adam', learning_rate=3e-4, schedule='constant', l2=1e-5, decay_mask='', clip_norm=10.0),
        checkpoint=dict(metric='val_accuracy', patience=5),
    )
