"""Which detector? R-CNN, SPP-Net, Fast R-CNN, Faster R-CNN and FCOS on one backbone, for the blood cells of BCCD.

    pip install 'jaxcnn[detection,pretrained]'
    jaxcnn study --study=detection --workdir=runs/detection --config.data.dir=BCCD
    for run in R-CNN SPP-Net; do jaxcnn fit_svms --workdir=runs/detection/$run/seed0; done
    jaxcnn study --study=detection:quick --workdir=runs/detection_quick --config.data.dir=BCCD

When the study is called again after `jaxcnn fit_svms`, its report has the mAP of the SVMs of R-CNN and SPP-Net beside that
of their softmax.

The published values are for VGG-16 on Pascal VOC 2007, and for FCOS there is none. The quick form has images of 160 x 120
pixels, small networks without ImageNet weights, and sliding windows. Result of the quick form, mAP@0.5: Faster R-CNN 33.59,
FCOS 25.16, Fast R-CNN 7.84, SPP-Net 7.24, R-CNN 33.84 % (docs/results.md). The full form is not yet measured.
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study


def get_study():
    return make_study(
        'bccd_faster_rcnn',
        {'Faster R-CNN': {}, 'FCOS': 'bccd_fcos', 'Fast R-CNN': 'bccd_fast_rcnn', 'SPP-Net': 'bccd_spp_net',
         'R-CNN': 'bccd_rcnn'},
        seeds=1, title='Detectors on BCCD', compare='test_map50', columns=('test_map75', 'test_coco_ap', 'svm_test_map50'),
        published={'Faster R-CNN': 0.699, 'Fast R-CNN': 0.669, 'SPP-Net': 0.631, 'R-CNN': 0.660})


def get_quick_study():
    resize = 'resize(120, 160)'
    windows = {'data.proposals': 'sliding_windows(scales=(48, 96, 160), ratios=(1,), stride=0.5, max_proposals=500)'}
    base = make(
        task='detection', loss='detection', duration=dict(epochs=6), batch_size=8,
        model=dict(name='faster_rcnn', backbone='resnet18(width=16)', strides=(4, 8, 16), anchor_sizes=(8, 16, 24, 40),
                   fpn_features=32, head_features=128, roi_batch=32, pre_nms=(200, 100), post_nms=(100, 50)),
        data=dict(name='voc', skip_broken=True, max_boxes=32, augment=f'{resize}|flip_lr|flip_ud', eval_augment=resize),
        optim=dict(optimizer='adamw', learning_rate=1e-3, weight_decay=0.01, warmup=dict(epochs=1), clip_norm=10.0),
        eval=dict(every=dict(epochs=3), batch_size=8))
    return make_study(
        base,
        {'Faster R-CNN': {},
         'FCOS': {'model': dict(name='fcos', backbone='resnet18(width=16)', fpn_features=32, head_layers=2, base_size=4.0)},
         'Fast R-CNN': {**windows, 'model': dict(name='fast_rcnn', backbone='resnet18(width=16)', roi_batch=32, roi_size=7)},
         'SPP-Net': {**windows, 'model': dict(name='spp_net', backbone='resnet18(width=16)', roi_batch=32, hidden=128)},
         'R-CNN': {**windows, 'model': dict(name='rcnn', backbone='resnet18(width=16)', roi_batch=16, region_size=32,
                                            context=2)}},
        seeds=1, title='Small detectors on small images of BCCD', compare='test_map50',
        columns=('test_map75', 'svm_test_map50'))
