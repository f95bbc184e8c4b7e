"""Fast R-CNN (Girshick 2015, "Fast R-CNN"): classes and refined boxes of proposals, from the feature maps of one pass."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.detection.base import Detections, Detector, Losses, Targets, check_numbers, shared_fields
from jaxcnn.models.detection.fpn import FPN
from jaxcnn.models.network import Maps, Network
from jaxcnn.ops import boxes as box_ops
from jaxcnn.ops.assign import match, sample
from jaxcnn.ops.roi import multilevel_roi_align, roi_align, roi_max_pool

POOLS = 'align', 'max'
HEAD_STD = 0.01, 0.001  # of the initial kernels for classes and for boxes, as in the paper


class Level(NamedTuple):
    """A feature map and its stride in pixels of the image; (N, H, W, C)."""

    features: jax.Array
    stride: int


class Regions(NamedTuple):
    """Boxes whose classes are predicted, in N images.

    Attributes:
      boxes: (N, R, 4).
      valid: (N, R), false for padding.
      labels: (N, R) int32 in training: the class of each, `num_classes` for background.
      matched: (N, R, 4) in training: the object's box.
    """

    boxes: jax.Array
    valid: jax.Array
    labels: jax.Array | None = None
    matched: jax.Array | None = None


class FastRCNN(Detector):
    """Fast R-CNN, with proposals from `config.data.proposals`.

    Each image gives `roi_batch` regions in training: at most the fraction `roi_positive` of them overlaps an object with an
    IoU of at least `roi_high`, and the others overlap it by `roi_low` or more, but less than `roi_high`. The boxes of the
    objects are proposals, too. The softmax has a class for the background. Each class has its own regression of boxes.

    Without `fpn` regions are pooled from one feature map and pass the rest of the classifier, such as the dense layers of
    VGG or the last stage of ResNet, as in the paper and in Ren et al. 2015. With it they are pooled from the levels of a
    feature pyramid (Lin et al. 2017, "Feature pyramid networks for object detection") and pass two dense layers.

    The terms of the loss are `classes`, the mean cross-entropy over the regions of an image, and `boxes`, the smooth L1 loss
    of the regression targets of its positive regions, divided by the number of all its regions.

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
      roi_batch, roi_positive, roi_high, roi_low: see above.
      box_weights: factors of the regression targets x, y, log width and log height, as in `ops.boxes.encode`.
      beta: from where the smooth L1 loss is linear.
    """

    takes_proposals: ClassVar[bool] = True

    fpn: bool = False
    strides: tuple[int, ...] = (4, 8, 16, 32)
    fpn_features: int = 256
    head_features: int = 1024
    roi_pool: str = 'max'
    roi_size: int = 0
    sampling_ratio: int = 2
    roi_aligned: bool = True
    nms_threshold: float = 0.3
    roi_batch: int = 64
    roi_positive: float = 0.25
    roi_high: float = 0.5
    roi_low: float = 0.1
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
            if self.roi_pool != 'align':
                raise UserError("fpn=True needs roi_pool='align', got 'max'")
            self.check_strides(self.strides)
        for name in ('fpn_features', 'head_features', 'sampling_ratio', 'roi_batch'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)!r}')
        if not 0 <= self.roi_low < self.roi_high <= 1:
            raise UserError(f'0 <= roi_low < roi_high <= 1 must hold, got {self.roi_low} and {self.roi_high}')
        if not 0 < self.roi_positive <= 1:
            raise UserError(f'roi_positive must be in (0, 1], got {self.roi_positive!r}')
        if len(self.box_weights) != 4:
            raise UserError(f'box_weights must be four numbers, got {self.box_weights}')
        check_numbers('box_weights', self.box_weights)
        if self.beta <= 0 or self.roi_size < 0:
            raise UserError(f'beta must be above 0 and roi_size at least 0, got {self.beta!r} and {self.roi_size!r}')

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`: Pascal VOC without a feature pyramid, else COCO."""
        return super().published_for() if self.fpn else ((600, 1000, 3), 20)

    def losses(self, x: jax.Array, targets: Targets, maps: Maps) -> Losses:
        """See `Detector.losses`; `targets` also has `proposals` and `proposal_valid`."""
        def select(levels: Sequence[Level]) -> Regions:
            return self.sample_regions(targets['proposals'], targets['proposal_valid'], targets)
        regions, logits, deltas = self.classify_regions(x, True, maps, select)
        return self.region_losses(regions, logits, deltas)

    def detections(self, x: jax.Array, proposals: Targets, train: bool, maps: Maps) -> Detections:
        """See `Detector.detections`. Without proposals, the image is the only one."""
        def select(levels: Sequence[Level]) -> Regions:
            if proposals:
                return Regions(proposals['proposals'], proposals['proposal_valid'])
            height, width = x.shape[1:3]
            image = jnp.array([0, 0, width, height], jnp.float32)
            return Regions(jnp.broadcast_to(image, (len(x), 1, 4)), jnp.ones((len(x), 1), bool))
        return self.region_detections(*self.classify_regions(x, train, maps, select), x.shape[1:])

    # the network

    @nn.nowrap
    def classify_regions(self, x: jax.Array, train: bool, maps: Maps, select: Callable[[Sequence[Level]], Regions],
                         ) -> tuple[Regions, jax.Array, jax.Array | None]:
        """Return regions, the logits of their classes (N, R, classes + 1), and regression targets (N, R, classes, 4).

        The regression targets are None for a network that does not refine boxes.

        Args:
          x: images (N, H, W, C).
          train: see `Network.__call__`.
          maps: see `Network.forward`.
          select: returns the regions; its argument are the levels of the feature maps. It is called once.
        """
        backbone = self.backbone_network().clone(parent=self, name='backbone')
        selected: list[Regions] = []

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
        features = features.astype(jnp.float32)
        logits, deltas = (
            self.dense(size, name=name, kernel_init=nn.initializers.normal(std))(features).astype(jnp.float32)
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
            return multilevel_roi_align([level.features for level in levels], boxes, self.strides, size, self.sampling_ratio,
                                        self.roi_aligned)
        (features, stride), = levels
        if self.roi_pool == 'align':
            return roi_align(features, boxes, size, 1 / stride, self.sampling_ratio, self.roi_aligned)
        return roi_max_pool(features, boxes, size, 1 / stride)

    # training

    @nn.nowrap
    def sample_regions(self, proposals: jax.Array, valid: jax.Array, targets: Targets) -> Regions:
        """Return the regions of a training step: a random sample of proposals and boxes of objects.

        Args:
          proposals: (N, P, 4).
          valid: (N, P), which proposals exist.
          targets: see `Detector.losses`.
        """
        def of_image(proposals: jax.Array, valid: jax.Array, targets: Targets) -> Regions:
            objects = targets['valid'] & ~targets['difficult']
            proposals = jnp.concatenate([proposals, targets['boxes']])
            usable = jnp.concatenate([valid, objects])
            matches = match(proposals, targets['boxes'], targets['valid'], self.roi_high, self.roi_high,
                            ignored_boxes=targets['difficult'])
            negative = usable & (matches.labels == 0) & (matches.iou >= self.roi_low)
            key = jax.random.fold_in(targets['key'], 1)
            drawn = sample(key, usable & (matches.labels == 1), negative, self.roi_batch, self.roi_positive)
            objects_of = matches.indices[drawn.indices]
            labels = jnp.where(drawn.is_positive, targets['classes'][objects_of], self.num_classes)
            return Regions(proposals[drawn.indices], drawn.valid, labels, targets['boxes'][objects_of])
        return jax.vmap(of_image)(proposals, valid, dict(targets))

    @nn.nowrap
    def region_losses(self, regions: Regions, logits: jax.Array, deltas: jax.Array | None) -> Losses:
        """Return the terms of the loss; for the arguments see `classify_regions`."""
        assert regions.labels is not None
        assert regions.matched is not None
        counts = jnp.maximum(regions.valid.sum(1), 1)
        entropies = optax.softmax_cross_entropy_with_integer_labels(logits, regions.labels)
        losses = {'classes': jnp.where(regions.valid, entropies, 0).sum(1) / counts}
        if deltas is None:
            return losses
        is_object = regions.valid & (regions.labels < self.num_classes)
        labels = jnp.minimum(regions.labels, self.num_classes - 1)
        predicted = jnp.take_along_axis(deltas, labels[..., None, None], axis=2)[..., 0, :]
        encoded = box_ops.encode(regions.matched, regions.boxes, self.box_weights)
        errors = smooth_l1(predicted - encoded, self.beta).sum(-1)
        return {**losses, 'boxes': jnp.where(is_object, errors, 0).sum(1) / counts}

    # evaluation

    @nn.nowrap
    def region_detections(self, regions: Regions, logits: jax.Array, deltas: jax.Array | None,
                          shape: tuple[int, ...]) -> Detections:
        """Return the detections among regions; for the arguments see `classify_regions`."""
        shape_of_all = (*regions.boxes.shape[:2], self.num_classes)
        boxes = jnp.broadcast_to(regions.boxes[:, :, None], (*shape_of_all, 4))
        if deltas is not None:
            boxes = box_ops.decode(deltas, boxes, self.box_weights)
        labels = jnp.broadcast_to(jnp.arange(self.num_classes), shape_of_all)
        mask = jnp.broadcast_to(regions.valid[..., None], shape_of_all)
        count, scores = len(boxes), jax.nn.softmax(logits)[..., :-1]
        return self.select_detections(boxes.reshape(count, -1, 4), scores.reshape(count, -1), labels.reshape(count, -1),
                                      mask.reshape(count, -1), shape)


def smooth_l1(errors: jax.Array, beta: float) -> jax.Array:
    """Return `errors² / (2 beta)` where their absolute value is below beta, and `|errors| - beta / 2` elsewhere."""
    sizes = jnp.abs(errors)
    return jnp.where(sizes < beta, 0.5 / beta * errors ** 2, sizes - 0.5 * beta)


MODELS: dict[str, tuple[type[Network], dict[str, Any]]] = {'fast_rcnn': (FastRCNN, {})}
