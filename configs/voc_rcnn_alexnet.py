"""R-CNN with AlexNet as in its paper, for PASCAL VOC 2007.

    pip install 'jaxcnn[detection]' torch
    jaxcnn train --config=voc_rcnn_alexnet --workdir=runs/rcnn --config.data.dir=VOC2007 --config.init.torch=alexnet.pth
    jaxcnn fit_svms --workdir=runs/rcnn --features=fc7

`VOC2007` is the folder with `JPEGImages`; `--config.data.name=voc_trainval` trains on its validation images, too.
`alexnet.pth` has torchvision's ImageNet weights of AlexNet, in place of the paper's, which are Caffe's. That AlexNet pads
its first convolution, so that its feature maps at 224 x 224 pixels have the sizes that the paper's have at 227 x 227.
Regions are warped with 16 pixels of context. A batch has 32 positive and 96 background regions, from 32 images. The number
of steps and their learning rates are those of the authors' code. Images are padded to squares of 512 x 512 pixels, with up
to 2,000 proposals of selective search. The second command fits the SVMs on `fc7`, and the box regressions. Published with
Caffe's AlexNet, VOC 2007 test: 58.5 % mAP. Result: not yet measured.
"""

from jaxcnn.config import make


def get_config():
    return make(
        task='detection',
        loss='detection',
        duration=dict(steps=70_000),
        batch_size=32,
        model=dict(name='rcnn', region_size=224, context=16, roi_batch=4, roi_positive=0.25, score_threshold=0.01,
                   backbone="alexnet(widths=(64, 192, 384, 256, 256), stem=((11, 4, 2), (5, 1, 2)), lrn=False, "
                            "kernel_init='normal(0.01)')"),
        data=dict(name='voc', image_size=512, resize='pad', augment='flip_lr',
                  proposals='selective_search(mode="fast", width=500, max_proposals=2000)',
                  normalize='standardize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.001, l2=5e-4,
                   schedule=dict(name='step', at=tuple(dict(steps=steps) for steps in (20_000, 40_000, 60_000)))),
        eval=dict(every=dict(steps=35_000), batch_size=1),
    )
