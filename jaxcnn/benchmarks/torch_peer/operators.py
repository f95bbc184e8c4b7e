"""torchvision's operators for object detection."""

import os

import numpy as np
import torch


def operator(name, folder, device):
    """Return a function that makes one call of an operator on the arrays of inputs.npz."""
    from torchvision import ops
    arrays = np.load(os.path.join(folder, 'inputs.npz'))
    boxes, scores, regions, features = (torch.from_numpy(arrays[key]).to(device)
                                        for key in ('boxes', 'scores', 'regions', 'features'))
    features = features.permute(2, 0, 1)[None].contiguous()
    if name in ('nms', 'nms_all'):
        count = 2000 if name == 'nms' else len(boxes)
        return lambda: ops.nms(boxes, scores, 0.7)[:count]

    def pool(features):
        if name.startswith('roi_align'):
            return ops.roi_align(features, [regions], 7, 1 / 16, 2, True)
        return ops.roi_pool(features, [regions], 7, 1 / 16)

    def step():
        if not name.endswith('gradient'):
            with torch.inference_mode():
                return pool(features)
        y = pool(features)
        return torch.autograd.grad(y, features, y.detach())

    features.requires_grad_(name.endswith('gradient'))
    return step
