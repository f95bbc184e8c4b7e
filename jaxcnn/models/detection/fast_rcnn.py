"""Fast R-CNN (Girshick 2015, "Fast R-CNN"): classes and refined boxes of proposals, from the feature maps of one pass."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.detection.base import Detector, Losses, check_numbers, shared_fields
from jaxcnn.models.detection.fpn import FPN
from jaxcnn.models.detection.region_classifier import HEAD_STD, Level, RegionClassifier, RoIs
from jaxcnn.models.network import Maps, Network
from jaxcnn.ops import boxes as box_ops
from jaxcnn.ops.roi import multilevel_roi_align, multilevel_roi_max_pool, roi_align, roi_max_pool

POOLS = 'align', 'max'


class FastRCNN(RegionClassifier):
    """Fast R-CNN, with proposals from `config.data.proposals`.

    Regions are sampled in training and classified as `RegionClassifier` says. Each class has its own regression of boxes.

    Without `fpn` regions are pooled from one feature map and pass the rest of the classifier, such as the dense layers of
    VGG or the last stage of ResNet, as in the paper and in Ren et al. 2015. With it they are pooled from the levels of a
    feature pyramid (Lin et al. 2017, "Feature pyramid networks for object detection") and pass two dense layers.

    Besides `classes`, the loss has the term `boxes`, the smooth L1 loss of the regression targets of an image's positive
    regions, divided by the number of all its regions.

    Attributes:
      fpn: use a feature pyramid.
      strides: strides of its levels, each twice the one before; without 4 it costs a fraction, and misses small objects.
      fpn_features: channels of its levels.
      head_features: features of each dense layer that follows it.
      roi_pool: `align` (He et al. 2017) or `max` (the paper's).
      roi_size: height and width of a pooled region; 0 stands for what the classifier takes, or 7 with `fpn`.
      sampling_ratio: of RoIAlign: points in each direction of a bin.
      roi_aligned: of RoIAlign: the centres of pixels are at half-integer coordinates, as is right for these boxes;
        torchvision's detectors have False.
      box_weights: factors of the regression targets x, y, log width and log height, as in `ops.boxes.encode`.
      beta: from where the smooth L1 loss is linear.
    """

    fpn: bool = False
    strides: tuple[int, ...] = (4, 8, 16, 32)
    fpn_features: int = 256
    head_features: int = 1024
    roi_pool: str = 'max'
    roi_size: int = 0
    sampling_ratio: int = 2
    roi_aligned: bool = True
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    beta: float = 1.0

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.roi_pool not in POOLS:
            raise unknown('roi_pool', self.roi_pool, POOLS)
        check_numbers('strides', self.strides, int)
        if not self.strides or any(b != 2 * a for a, b in itertools.pairwise(self.strides)):
            raise UserError(f'strides must be numbers such as 4, 8, 16, each twice the one before, got {self.strides}')
        if self.fpn:
            self.check_strides(self.strides)
        for name in ('fpn_features', 'head_features', 'sampling_ratio'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)!r}')
        if len(self.box_weights) != 4:
            raise UserError(f'box_weights must be four numbers, got {self.box_weights}')
        check_numbers('box_weights', self.box_weights)
        if self.beta <= 0 or self.roi_size < 0:
            raise UserError(f'beta must be above 0 and roi_size at least 0, got {self.beta!r} and {self.roi_size!r}')

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`: Pascal VOC without a feature pyramid, else COCO."""
        return Detector.published_for(self) if self.fpn else super().published_for()

    def backbone_fields(self) -> tuple[str, ...]:
        """See `Detector.backbone_fields`; without a feature pyramid, all layers but the outputs are the backbone's."""
        return super().backbone_fields() if self.fpn else (*super().backbone_fields(), 'kernel_init')

    def loss_terms(self) -> tuple[str, ...]:
        """See `Detector.loss_terms`."""
        return (*super().loss_terms(), 'boxes')

    @nn.nowrap
    def classify_regions(self, x: jax.Array, train: bool, maps: Maps, select: Callable[[Sequence[Level]], RoIs],
                         ) -> tuple[RoIs, jax.Array, jax.Array | None]:
        """See `RegionClassifier.classify_regions`."""
        backbone = self.backbone_network().clone(parent=self, name='backbone')
        selected: list[RoIs] = []

        def pool(backbone_maps: Maps) -> jax.Array:
            maps.update(backbone_maps)
            levels = self.levels(backbone, backbone_maps, maps)
            selected.append(select(levels))
            pooled = self.pool_regions(levels, selected[0].boxes)
            return pooled.reshape(-1, *pooled.shape[2:])  # regions of all images after each other

        if self.fpn:
            features = pool(backbone.feature_maps(x, train))
            features = features.reshape(len(features), -1)
            for i in range(2):
                features = nn.relu(self.dense(self.head_features, name=f'head{i + 1}')(features))
        else:
            features = backbone.region_features(x, train, pool)
        logits, deltas = (
            self.dense(size, name=name, kernel_init=nn.initializers.normal(std), dtype=jnp.float32)(features)
            for name, size, std in zip(('classes', 'boxes'), (self.num_classes + 1, 4 * self.num_classes), HEAD_STD,
                                       strict=True))
        regions = selected[0]
        shape = regions.boxes.shape[:2]
        return regions, logits.reshape(*shape, -1), deltas.reshape(*shape, self.num_classes, 4)

    @nn.nowrap
    def levels(self, backbone: Network, backbone_maps: Maps, maps: Maps) -> list[Level]:
        """Return the feature maps from which regions are pooled; those of a pyramid are added to `maps`."""
        if not self.fpn:
            name = backbone.region_input()[0]
            return [Level(backbone_maps[name], backbone.map_geometry(name)[0])]
        names = self.strided_maps()
        pyramid = FPN(self.fpn_features, **shared_fields(self), name='fpn', parent=self)
        outputs = pyramid([backbone_maps[names[stride]] for stride in self.strides])
        maps.update({f'p{stride.bit_length() - 1}': x for x, stride in zip(outputs, self.strides, strict=True)})
        return [Level(x, stride) for x, stride in zip(outputs, self.strides, strict=True)]

    @nn.nowrap
    def pool_regions(self, levels: Sequence[Level], boxes: jax.Array) -> jax.Array:
        """Return regions (N, R, size, size, C) pooled from the levels, for boxes (N, R, 4)."""
        boxes = jax.lax.stop_gradient(boxes)
        size = self.roi_size or (7 if self.fpn else self.backbone_network().region_input()[1])
        if self.fpn:
            features_of_levels = [level.features for level in levels]
            if self.roi_pool == 'max':
                return multilevel_roi_max_pool(features_of_levels, boxes, self.strides, size)
            return multilevel_roi_align(features_of_levels, boxes, self.strides, size, self.sampling_ratio, self.roi_aligned)
        (features, stride), = levels
        if self.roi_pool == 'align':
            return roi_align(features, boxes, size, 1 / stride, self.sampling_ratio, self.roi_aligned)
        return roi_max_pool(features, boxes, size, 1 / stride)

    @nn.nowrap
    def region_losses(self, regions: RoIs, logits: jax.Array, deltas: jax.Array | None) -> Losses:
        """See `RegionClassifier.region_losses`."""
        assert regions.labels is not None
        assert regions.matched is not None
        assert deltas is not None
        is_object = regions.valid & (regions.labels < self.num_classes)
        labels = jnp.minimum(regions.labels, self.num_classes - 1)
        predicted = jnp.take_along_axis(deltas, labels[..., None, None], axis=2)[..., 0, :]
        encoded = box_ops.encode(regions.matched, regions.boxes, self.box_weights)
        errors = smooth_l1(predicted - encoded, self.beta).sum(-1)
        boxes = jnp.where(is_object, errors, 0).sum(1) / jnp.maximum(regions.valid.sum(1), 1)
        return {**super().region_losses(regions, logits, deltas), 'boxes': boxes}

    @nn.nowrap
    def class_boxes(self, boxes: jax.Array, deltas: jax.Array | None) -> jax.Array:
        """See `RegionClassifier.class_boxes`."""
        assert deltas is not None
        return box_ops.decode(deltas, boxes, self.box_weights)


def smooth_l1(errors: jax.Array, beta: float) -> jax.Array:
    """Return `errors² / (2 beta)` where their absolute value is below beta, and `|errors| - beta / 2` elsewhere."""
    sizes = jnp.abs(errors)
    return jnp.where(sizes < beta, 0.5 / beta * errors ** 2, sizes - 0.5 * beta)


MODELS: dict[str, tuple[type[Network], dict[str, Any]]] = {'fast_rcnn': (FastRCNN, {})}
