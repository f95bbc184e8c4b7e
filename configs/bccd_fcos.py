"""FCOS, a detector with one stage and without anchors, on EfficientNet-Lite0, for the blood cells of BCCD.

    pip install 'jaxcnn[detection,pretrained]'
    jaxcnn train --config=bccd_fcos --workdir=runs/bccd_fcos --config.data.dir=BCCD

The data and the optimisation are those of `bccd_faster_rcnn`. Result: a mean average precision of 90.99 % at IoU 0.5 on the
72 test images, seed 0 (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        task='detection',
        loss='detection',
        duration=dict(epochs=20),
        batch_size=4,
        model=dict(name='fcos', backbone='efficientnet_lite0(drop_connect=0.0)', fpn_features=96, head_layers=2,
                   score_threshold=0.01),
        init=dict(pretrained='efficientnet_lite0'),
        freeze_bn=dict(steps=0),
        data=dict(name='voc', skip_broken=True, max_boxes=32,
                  augment='resize(360, 480)|flip_lr|flip_ud|large_scale_jitter((0.8, 1.25))',
                  eval_augment='resize(360, 480)', normalize='standardize(0.498039, 0.501961)'),
        optim=dict(optimizer='adamw', learning_rate=3e-4, weight_decay=0.01, warmup=dict(epochs=1), clip_norm=10.0),
        eval=dict(every=dict(epochs=2), batch_size=4),
    )
