"""SPP-Net on EfficientNet-Lite0, for the blood cells of BCCD (364 images of 640 x 480 pixels).

    pip install 'jaxcnn[detection,pretrained]'
    jaxcnn train --config=bccd_spp_net --workdir=runs/spp_net --config.data.dir=BCCD
    jaxcnn fit_svms --workdir=runs/spp_net --before

The convolutions have ImageNet weights, which expect (x - 127) / 128 for pixels x from 0 to 255, and do not change. Regions
are pooled at two scales from the last feature map of stride 16 to the paper's 50 bins, and only the two dense layers and the
classifier after them are trained. The first run computes the proposals, in about 5 minutes on 2 cores. The second command
fits the SVMs and box regressions. Result: on the 72 test images, a mean average precision at IoU 0.5 of 67.76 % by softmax,
and of 81.96 % by SVMs on pool5 with regression of boxes, seed 0 (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        task='detection',
        loss='detection',
        duration=dict(epochs=8),
        batch_size=4,
        model=dict(name='spp_net', backbone='efficientnet_lite0', scales=(360, 640), hidden=1024, dropout=0.5, roi_batch=64,
                   score_threshold=0.01),
        init=dict(pretrained='efficientnet_lite0'),
        data=dict(name='voc', skip_broken=True, max_boxes=32, augment='resize(360, 480)|flip_lr|flip_ud',
                  eval_augment='resize(360, 480)',
                  proposals='selective_search(mode="quality", width=320, k=100, max_proposals=1000)',
                  normalize='standardize(0.498039, 0.501961)'),
        optim=dict(optimizer='adamw', learning_rate=3e-4, weight_decay=0.01, warmup=dict(epochs=1), clip_norm=10.0,
                   groups=(dict(match='^backbone/', rate=0.0),)),
        eval=dict(every=dict(epochs=4), batch_size=4),
    )
