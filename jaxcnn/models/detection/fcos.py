"""FCOS (Tian et al. 2019, "FCOS: fully convolutional one-stage object detection"): one stage, without anchors."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcnn.errors import UserError, unknown
from jaxcnn.losses import bce_by_class
from jaxcnn.models.detection.base import Detections, Detector, Losses, Targets, shared_fields
from jaxcnn.models.detection.fpn import FPN
from jaxcnn.models.network import Maps, Network
from jaxcnn.ops import boxes as box_ops

GROUPS = 32  # of the normalisation
STRIDES = 8, 16, 32, 64, 128
PRIOR = 0.01  # probability of a class at the start (Lin et al. 2017, "Focal loss for dense object detection", section 4.1)


class FCOS(Detector):
    """Each position of a feature pyramid predicts the classes of an object, its box and how central the position is.

    A position belongs to an object if it is within its box, less than `radius` strides from its centre, and if the largest
    distance to a side of the box is in the range of the level: up to 4, 8, 16 and 32 times `base_size` on the first four
    levels, each from where the one before ends, and any larger distance on the last. Of several such objects the smallest
    counts. Other positions are background, except within difficult objects, where they are ignored.

    The terms of the loss, divided by the number of positions with an object in the image, are `classes` (the focal loss),
    `boxes` (1 - GIoU, weighted by the centrality) and `centerness` (the binary cross-entropy). The score of a detection is
    the root of the product of the probabilities of its class and of its centrality.

    torchvision's FCOS has `point_convention='torchvision'`, `weighted_boxes=False`, `score_threshold=0.2`,
    `nms_threshold=0.6` and no parameters `scales`, which are 1.

    Attributes:
      fpn_features: channels of the feature pyramid, whose strides are 8 to 128.
      head_layers: number of convolutions before each output, with group normalisation.
      base_size: see above.
      radius: see above.
      gamma, alpha: of the focal loss.
      weighted_boxes: weigh the terms of the loss `boxes` by the centrality, as in the authors' code.
      point_convention: `paper`, where positions are the centres of the cells of a feature map; or `torchvision`, where they
        are the upper left corners of the cells.
      pre_nms: number of candidates of each level, pairs of a position and a class, before non-maximum suppression.
    """

    fpn_features: int = 256
    head_layers: int = 4
    base_size: float = 16.0
    radius: float = 1.5
    gamma: float = 2.0
    alpha: float = 0.25
    weighted_boxes: bool = True
    point_convention: str = 'paper'
    pre_nms: int = 1000

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        self.check_strides(STRIDES[:3])
        for name in ('fpn_features', 'head_layers', 'pre_nms'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)!r}')
        if self.point_convention not in box_ops.ANCHOR_CONVENTIONS:
            raise unknown('point_convention', self.point_convention, box_ops.ANCHOR_CONVENTIONS)
        if self.fpn_features % GROUPS:
            raise UserError(f'fpn_features must be a multiple of {GROUPS}, got {self.fpn_features}')
        if min(self.base_size, self.radius) <= 0 or not 0 <= self.alpha <= 1 or self.gamma < 0:
            raise UserError('base_size and radius must be above 0, alpha in [0, 1] and gamma at least 0, got '
                            f'{self.base_size}, {self.radius}, {self.alpha} and {self.gamma}')

    def loss_terms(self) -> tuple[str, ...]:
        """See `Detector.loss_terms`."""
        return 'classes', 'boxes', 'centerness'

    def losses(self, x: jax.Array, targets: Targets, maps: Maps) -> Losses:
        """See `Detector.losses`."""
        classes, sides, centerness, points, strides, _ = self.predict(x, True, maps)

        def of_image(classes: jax.Array, sides: jax.Array, centerness: jax.Array, targets: Targets) -> Losses:
            index, is_object, is_ignored = self.assign(points, strides, targets)
            wanted = jax.nn.one_hot(jnp.where(is_object, targets['classes'][index], -1), self.num_classes)
            count = jnp.maximum(is_object.sum(), 1)
            focal = jnp.where(is_ignored[:, None], 0, bce_by_class(classes, wanted, self.gamma, self.alpha)).sum() / count
            boxes = jnp.where(is_object[:, None], targets['boxes'][index], jnp.array([0, 0, 1, 1], jnp.float32))
            wanted_sides = jnp.where(is_object[:, None], distances(points, boxes), 1)
            centrality = jax.lax.stop_gradient(central(wanted_sides))
            overlaps = box_ops.giou(boxes_of(points, jnp.where(is_object[:, None], sides, 1)), boxes, aligned=True)
            entropies = optax.sigmoid_binary_cross_entropy(centerness, centrality)
            weights = jnp.where(is_object, centrality if self.weighted_boxes else 1.0, 0)
            return {'classes': focal, 'boxes': ((1 - overlaps) * weights).sum() / jnp.maximum(weights.sum(), 1e-6),
                    'centerness': jnp.where(is_object, entropies, 0).sum() / count}
        return jax.vmap(of_image)(classes, sides, centerness, dict(targets))

    def detections(self, x: jax.Array, proposals: Targets, train: bool, maps: Maps) -> Detections:
        """See `Detector.detections`."""
        classes, sides, centerness, points, _, sizes = self.predict(x, train, maps)
        scores = jnp.sqrt(jax.nn.sigmoid(classes) * jax.nn.sigmoid(centerness)[..., None])
        indices, start = [], 0
        for size in sizes:
            of_level = scores[:, start:start + size]
            # The best pairs are at the positions with the best classes. Selecting these first makes the sorting short.
            positions = jax.lax.top_k(of_level.max(-1), min(self.pre_nms, size))[1]
            pairs = jnp.take_along_axis(of_level, positions[..., None], 1).reshape(x.shape[0], -1)
            best = jax.lax.top_k(pairs, min(self.pre_nms, pairs.shape[1]))[1]
            position = jnp.take_along_axis(positions, best // self.num_classes, 1)
            indices.append((start + position) * self.num_classes + best % self.num_classes)
            start += size
        pairs = jnp.concatenate(indices, 1)
        positions, labels = pairs // self.num_classes, pairs % self.num_classes
        boxes = boxes_of(points[positions], jnp.take_along_axis(sides, positions[..., None], 1))
        scores = jnp.take_along_axis(scores.reshape(x.shape[0], -1), pairs, 1)
        return self.select_detections(boxes, scores, labels, jnp.ones(pairs.shape, bool), x.shape[1:])

    @nn.nowrap
    def predict(self, x: jax.Array, train: bool, maps: Maps) -> tuple[Any, ...]:
        """Return what each of the A positions of all levels predicts.

        Returns:
          The logits of the classes (N, A, classes), the distances to the left, upper, right and lower side of the box in
          pixels (N, A, 4), the logits of the centrality (N, A), the positions x and y in pixels (A, 2), their strides (A,),
          and the number of positions of each level.
        """
        backbone = self.backbone_network().clone(parent=self, name='backbone')
        backbone_maps = backbone.feature_maps(x, train)
        maps.update(backbone_maps)
        names = self.strided_maps()
        levels = FPN(self.fpn_features, extra='convolutions', **shared_fields(self), name='fpn', parent=self)(
            [backbone_maps[names[stride]] for stride in STRIDES[:3]])
        maps.update({f'p{i}': level for i, level in enumerate(levels, 3)})
        towers = {tower: [(self.conv(self.fpn_features, 3, name=f'{tower}{i}'), self._group_norm(f'{tower}_norm{i}'))
                          for i in range(self.head_layers)] for tower in ('classes', 'boxes')}
        std = nn.initializers.normal(0.01)
        bias = nn.initializers.constant(-math.log((1 - PRIOR) / PRIOR))
        classify = self.conv(self.num_classes, 3, kernel_init=std, bias_init=bias, dtype=jnp.float32, name='class_logits')
        regress = self.conv(4, 3, kernel_init=std, dtype=jnp.float32, name='sides')
        centralize = self.conv(1, 3, kernel_init=std, dtype=jnp.float32, name='centerness')
        scales = self.param('scales', nn.initializers.ones, (len(levels),))
        outputs, points, strides = [], [], []
        for i, (level, stride) in enumerate(zip(levels, STRIDES, strict=True)):
            towered = {}
            for tower, layers in towers.items():
                y = level
                for conv, norm in layers:
                    y = nn.relu(norm(conv(y)))
                towered[tower] = y
            sides = nn.relu(regress(towered['boxes']) * scales[i]) * stride
            outputs.append([_flatten(values) for values in (classify(towered['classes']), sides,
                                                            centralize(towered['boxes']))])
            offset = 0.5 if self.point_convention == 'paper' else 0.0
            points.append(grid(level.shape[1], level.shape[2], stride, offset))
            strides.append(jnp.full(len(points[-1]), stride))
        classes, sides, centerness = (jnp.concatenate(values, 1) for values in zip(*outputs, strict=True))
        sizes = [len(of_level) for of_level in points]
        return classes, sides, centerness[..., 0], jnp.concatenate(points), jnp.concatenate(strides), sizes

    @nn.nowrap
    def _group_norm(self, name: str) -> nn.GroupNorm:
        return nn.GroupNorm(GROUPS, epsilon=1e-5, dtype=jnp.dtype(self.dtype), use_fast_variance=False, name=name)

    @nn.nowrap
    def assign(self, points: jax.Array, strides: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the object of each position in an image, whether there is one, and whether the position is ignored, (A,)
        each."""
        boxes = targets['boxes']
        sides = distances(points[:, None], boxes[None])  # (A, M, 4)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        is_central = (jnp.abs(points[:, None] - centers).max(-1) < self.radius * strides[:, None])
        largest = sides.max(-1)
        upper = jnp.where(strides == STRIDES[-1], jnp.inf, strides / STRIDES[0] * 4 * self.base_size)[:, None]
        lower = jnp.where(strides == STRIDES[0], 0, strides / STRIDES[0] * 2 * self.base_size)[:, None]
        is_inside = (sides.min(-1) > 0) & targets['valid']
        belongs = is_inside & is_central & (largest >= lower) & (largest <= upper)
        areas = jnp.where(belongs & ~targets['difficult'], box_ops.area(boxes), jnp.inf)
        is_object = jnp.isfinite(areas.min(-1))
        return areas.argmin(-1), is_object, (is_inside & targets['difficult']).any(-1) & ~is_object


def _flatten(x: jax.Array) -> jax.Array:
    """Return a map (N, H, W, C) as (N, H * W, C)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def grid(height: int, width: int, stride: int, offset: float = 0.5) -> jax.Array:
    """Return the positions x and y, in pixels, of the cells of a map of this size: (height * width, 2).

    They are the centres of the cells if `offset` is 0.5, and their upper left corners if it is 0.
    """
    y, x = jnp.meshgrid((jnp.arange(height) + offset) * stride, (jnp.arange(width) + offset) * stride, indexing='ij')
    return jnp.stack([x, y], -1).reshape(-1, 2)


def distances(points: jax.Array, boxes: jax.Array) -> jax.Array:
    """Return the distances (..., 4) of points (..., 2) to the left, upper, right and lower sides of boxes (..., 4)."""
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def boxes_of(points: jax.Array, sides: jax.Array) -> jax.Array:
    """Return the boxes (..., 4) whose sides are at these distances (..., 4) from points (..., 2)."""
    return jnp.concatenate([points - sides[..., :2], points + sides[..., 2:]], -1)


def central(sides: jax.Array) -> jax.Array:
    """Return how central a position is, in [0, 1], for its distances (..., 4) to the sides of a box: equation 3."""
    horizontal, vertical = sides[..., 0::2], sides[..., 1::2]
    product = (horizontal.min(-1) / jnp.maximum(horizontal.max(-1), 1e-6)
               * vertical.min(-1) / jnp.maximum(vertical.max(-1), 1e-6))
    return jnp.sqrt(jnp.maximum(product, 0))


MODELS: dict[str, tuple[type[Network], dict[str, Any]]] = {'fcos': (FCOS, {})}
