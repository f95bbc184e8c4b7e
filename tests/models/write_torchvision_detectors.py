"""Write torchvision_detectors.npz, what torchvision's Faster R-CNN and FCOS return with the weights of detector_weights.py.

    python tests/models/write_torchvision_detectors.py

It needs torch==2.14.1 and torchvision==0.29.1.
"""

import pathlib

import detector_weights
import numpy as np
import torch
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

PATH = pathlib.Path(__file__).with_name('torchvision_detectors.npz')
SETTINGS = dict(image_mean=[0.0] * 3, image_std=[1.0] * 3, min_size=detector_weights.HEIGHT,
                max_size=detector_weights.IMAGE_WIDTH)


def backbone(first_stage, features, extra):
    """Return a ResNet with one block in each stage, and a feature pyramid on the stages from `first_stage`."""
    net = ResNet(BasicBlock, [1] * 4, norm_layer=FrozenBatchNorm2d)
    net.inplanes = width = detector_weights.WIDTH
    net.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
    net.bn1 = FrozenBatchNorm2d(width)
    for i in range(4):
        setattr(net, f'layer{i + 1}', net._make_layer(BasicBlock, width << i, 1, stride=min(2, i + 1)))
    stages = range(first_stage, 5)
    return BackboneWithFPN(net, {f'layer{i}': str(i - first_stage) for i in stages}, [width << (i - 1) for i in stages],
                           features, extra)


def record(model, arrays, prefix, modules):
    """Add the outputs of modules, the detections and the losses of a model to `arrays`."""
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            value.copy_(torch.tensor(detector_weights.weight(name, tuple(value.shape))))
    image = [torch.tensor(detector_weights.image())]
    first_label = 1 if prefix == 'faster_rcnn' else 0  # the background is class 0
    target = [{'boxes': torch.tensor(detector_weights.BOXES), 'labels': torch.tensor(detector_weights.LABELS) + first_label}]
    hooks = [module.register_forward_hook(lambda _, inputs, output, keep=keep: arrays.update(keep(output)))
             for module, keep in modules]
    detections = model.eval()(image)[0]
    arrays |= {f'{prefix}_{name}': value for name, value in detections.items()}
    for hook in hooks:
        hook.remove()
    arrays |= {f'{prefix}_{name}': value for name, value in model.train()(image, target).items()}


def main():
    arrays = {}
    features = detector_weights.FEATURES['faster_rcnn']
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5)
    model = FasterRCNN(
        backbone(1, features, LastLevelMaxPool()), rpn_anchor_generator=anchors,
        box_head=TwoMLPHead(features * 49, detector_weights.HEAD_FEATURES),
        box_predictor=FastRCNNPredictor(detector_weights.HEAD_FEATURES, detector_weights.CLASSES + 1),
        rpn_pre_nms_top_n_train=200, rpn_pre_nms_top_n_test=100, rpn_post_nms_top_n_train=100, rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=8192, box_batch_size_per_image=512, **SETTINGS)

    def flatten(maps, size):
        return torch.cat([x[0].permute(1, 2, 0).reshape(-1, size) for x in maps])
    record(model, arrays, 'faster_rcnn', [
        (model.rpn.head, lambda output: {'rpn_logits': flatten(output[0], 1)[:, 0], 'rpn_deltas': flatten(output[1], 4)}),
        (model.rpn, lambda output: {'proposals': output[0][0]}),
        (model.roi_heads.box_predictor, lambda output: {'class_logits': output[0], 'box_deltas': output[1]})])
    features = detector_weights.FEATURES['fcos']
    model = FCOS(backbone(2, features, LastLevelP6P7(features, features)), detector_weights.CLASSES, score_thresh=0.05,
                 topk_candidates=50, detections_per_img=300, **SETTINGS)
    record(model, arrays, 'fcos', [(model.head, lambda output: {name: value[0] for name, value in output.items()})])
    for name, value in arrays.items():
        print(name, tuple(value.shape), float(value.float().mean()), float(value.float().std()) if value.ndim else '')
    np.savez_compressed(PATH, **{name: value.detach().numpy() for name, value in arrays.items()})


if __name__ == '__main__':
    main()
