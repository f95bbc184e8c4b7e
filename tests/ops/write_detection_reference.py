"""Write detection_reference.npz, what torchvision's parts of detectors return for small inputs.

    python tests/ops/write_detection_reference.py

It needs torch==2.14.1 and torchvision==0.29.1.
"""

import pathlib
from collections import OrderedDict

import numpy as np
import torch
from torchvision import ops
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

PATH = pathlib.Path(__file__).with_name('detection_reference.npz')


def main() -> None:
    rng = np.random.default_rng(0)
    begin = rng.uniform(0, 60, (5, 2))
    boxes = torch.tensor(np.concatenate([begin, begin + rng.uniform(8, 60, (5, 2))], axis=1), dtype=torch.float32)
    shapes, sizes = ((12, 16), (6, 8), (3, 4)), ((16, 25.3), (32,), (64,))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    images = ImageList(torch.zeros(1, 3, 96, 128), [(96, 128)])
    anchors = generator(images, [torch.zeros(1, 1, *shape) for shape in shapes])[0]
    arrays = {'boxes': boxes, 'anchors': anchors}
    for low_quality in (False, True):
        arrays[f'matches_{low_quality}'] = Matcher(0.6, 0.3, low_quality)(ops.box_iou(boxes, anchors))

    maps = {f'level{i}': torch.tensor(rng.normal(size=(2, 4, h, w)), dtype=torch.float32) for i, (h, w) in enumerate(shapes)}
    begin = rng.uniform(-10, 100, (2, 20, 2))
    regions = np.concatenate([begin, begin + np.exp(rng.uniform(2, 5, (2, 20, 2)))], axis=-1).astype(np.float32)
    pool = ops.MultiScaleRoIAlign(list(maps), 3, 2, canonical_scale=32, canonical_level=4)
    pooled = pool(OrderedDict(maps), [torch.tensor(x) for x in regions], [(96, 128)] * 2)
    arrays |= {**maps, 'regions': regions, 'levels': pool.map_levels([torch.tensor(x) for x in regions]),
               'pooled': pooled.permute(0, 2, 3, 1)}

    odd = {f'odd{i}': torch.tensor(rng.normal(size=(1, c, h, w)), dtype=torch.float32)
           for i, (c, h, w) in enumerate([(3, 13, 9), (4, 7, 5), (5, 4, 3)])}
    torch.manual_seed(0)
    for name, block in (('pool', LastLevelMaxPool()), ('p6p7', LastLevelP6P7(6, 6))):
        pyramid = ops.FeaturePyramidNetwork([3, 4, 5], 6, block)
        arrays |= {f'{name}_{key}': value for key, value in pyramid.state_dict().items()}
        arrays |= {f'{name}_{key}': value.permute(0, 2, 3, 1) for key, value in pyramid(OrderedDict(odd)).items()}
    arrays |= odd
    for name in [*maps, *odd]:
        arrays[name] = arrays[name].permute(0, 2, 3, 1)
    np.savez_compressed(PATH, **{name: np.asarray(torch.as_tensor(value).detach()) for name, value in arrays.items()})


if __name__ == '__main__':
    main()
