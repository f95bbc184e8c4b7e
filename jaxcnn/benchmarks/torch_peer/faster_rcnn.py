"""torchvision's Faster R-CNN with a ResNet-18 and a feature pyramid."""

import os

import numpy as np
import torch


def faster_rcnn(name, folder, device):
    """Return a function that makes one training step or one inference on the images of examples.npz.

    All layers are trained, and BatchNorm is frozen. The images keep their size.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d
    arrays = np.load(os.path.join(folder, 'examples.npz'))
    images = torch.from_numpy(arrays['image']).to(device).permute(0, 3, 1, 2)
    targets = [{'boxes': torch.from_numpy(boxes).to(device), 'labels': torch.from_numpy(classes).long().to(device) + 1}
               for boxes, classes in zip(arrays['boxes'], arrays['classes'], strict=True)]
    backbone = resnet_fpn_backbone(backbone_name='resnet18', weights=None, trainable_layers=5, norm_layer=FrozenBatchNorm2d)
    model = FasterRCNN(backbone, int(arrays['classes'].max()) + 2, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    model.transform.resize = lambda image, target=None: (image, target)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    model.train(name == 'train')

    def step():
        scaled = list(images / 255)
        if name == 'eval':
            with torch.inference_mode():
                return model(scaled)
        optimizer.zero_grad(set_to_none=True)
        sum(model(scaled, targets).values()).backward()
        optimizer.step()
    return step
