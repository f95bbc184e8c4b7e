"""Write torchvision_reference.npz, what torchvision's operators return for a few boxes and a small feature map.

    python tests/ops/write_torchvision_reference.py

It needs torch==2.14.1 and torchvision==0.29.1.
"""

import pathlib

import numpy as np
import torch
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator

PATH = pathlib.Path(__file__).with_name('torchvision_reference.npz')


def main() -> None:
    rng = np.random.default_rng(0)
    # 40 clusters of boxes on a grid of half pixels, so that some overlaps and scores tie
    cluster = rng.integers(0, 40, 400)
    centers = rng.uniform(20, 200, (40, 2))[cluster] + rng.normal(size=(400, 2)) * 5
    sides = rng.uniform(10, 60, (40, 2))[cluster] * np.exp(rng.normal(size=(400, 2)) * 0.15)
    boxes = (np.round(2 * np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)) / 2).astype(np.float32)
    scores = (rng.integers(0, 200, 400) / 200).astype(np.float32)
    labels = rng.integers(0, 3, 400)
    features = rng.normal(size=(11, 14, 3)).astype(np.float32)
    begin = rng.uniform(0, 170, (30, 2))
    regions = np.concatenate([begin, begin + rng.uniform(0, 1, (30, 2)) ** 2 * ([224, 176] - begin)], axis=1)
    regions = np.concatenate([regions, [[0, 0, 224, 176], [40, 40, 40, 40], [30.2, 50.1, 33, 51]]]).astype(np.float32)
    arrays = {'boxes': boxes, 'scores': scores, 'labels': labels, 'features': features, 'regions': regions}
    t = {name: torch.tensor(value) for name, value in arrays.items()}

    arrays['iou'] = ops.box_iou(t['boxes'][:50], t['boxes'][50:90])
    arrays['giou'] = ops.generalized_box_iou(t['boxes'][:50], t['boxes'][50:90])
    for threshold in (0.25, 0.5, 0.7):
        arrays[f'nms_{threshold}'] = ops.nms(t['boxes'], t['scores'], threshold)
        arrays[f'nms_per_class_{threshold}'] = ops.batched_nms(t['boxes'], t['scores'], t['labels'], threshold)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    arrays['targets'] = coder.encode_single(t['boxes'][:50], t['boxes'][50:100])
    large = 10 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    arrays['predicted'], arrays['decoded'] = large, coder.decode_single(large, t['boxes'][:50])
    arrays['anchors'] = AnchorGenerator().grid_anchors([[3, 4]], [[16, 16]])[0]

    maps = t['features'].permute(2, 0, 1)[None].requires_grad_()
    results = {'max': ops.roi_pool(maps, [t['regions']], 4, 1 / 16)}
    for ratio in (0, 1, 2, 3):
        for aligned in (False, True):
            results[f'{ratio}_{aligned}'] = ops.roi_align(maps, [t['regions']], 4, 1 / 16, ratio, aligned)
    ties = torch.round(maps.detach()).relu().requires_grad_()
    results['max_of_ties'] = ops.roi_pool(ties, [t['regions']], 4, 1 / 16)
    for name, y in results.items():
        # the gradient of the sum of y * cos(0, 1, 2, ...), in the layout of jaxcnn
        weights = torch.cos(torch.arange(y.numel(), dtype=torch.float32)).reshape(y.permute(0, 2, 3, 1).shape)
        arrays[f'roi_{name}'] = y.detach().permute(0, 2, 3, 1)
        arrays[f'roi_{name}_gradient'] = torch.autograd.grad(
            y, ties if name == 'max_of_ties' else maps, weights.permute(0, 3, 1, 2))[0][0].permute(1, 2, 0)
    np.savez_compressed(PATH, **{name: np.asarray(value) for name, value in arrays.items()})


if __name__ == '__main__':
    main()
