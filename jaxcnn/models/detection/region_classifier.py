"""The base class of detectors that classify regions: R-CNN, SPP-Net, and Fast R-CNN with its successors."""

import abc
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcnn.errors import UserError
from jaxcnn.models.detection.base import Detections, Detector, Losses, Targets
from jaxcnn.models.network import Maps
from jaxcnn.ops.assign import match, sample

HEAD_STD = 0.01, 0.001  # of the initial kernels for classes and for boxes, as in Fast R-CNN's paper


class Level(NamedTuple):
    """A feature map and its stride in pixels of the image; (N, H, W, C)."""

    features: jax.Array
    stride: int


class RoIs(NamedTuple):
    """Regions of interest: the boxes whose classes are predicted, in N images.

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


class RegionClassifier(Detector):
    """The base class of detectors that classify regions of the image, by default the proposals of `config.data.proposals`.

    Each image gives `roi_batch` regions in training: at most the fraction `roi_positive` of them overlaps an object with an
    IoU of at least `roi_high`, and the others overlap it by `roi_low` or more, but less than `roi_high`. The boxes of the
    objects are proposals, too. The softmax has a class for the background.

    The term of the loss is `classes`, the mean cross-entropy over the regions of an image.

    A subclass implements `classify_regions`.

    Attributes:
      roi_batch, roi_positive, roi_high, roi_low: see above.
    """

    takes_proposals: ClassVar[bool] = True

    nms_threshold: float = 0.3
    roi_batch: int = 64
    roi_positive: float = 0.25
    roi_high: float = 0.5
    roi_low: float = 0.1

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.roi_batch < 1:
            raise UserError(f'roi_batch must be at least 1, got {self.roi_batch!r}')
        if not 0 <= self.roi_low < self.roi_high <= 1:
            raise UserError(f'0 <= roi_low < roi_high <= 1 must hold, got {self.roi_low} and {self.roi_high}')
        if not 0 < self.roi_positive <= 1:
            raise UserError(f'roi_positive must be in (0, 1], got {self.roi_positive!r}')

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`: Pascal VOC."""
        return (600, 1000, 3), 20

    def loss_terms(self) -> tuple[str, ...]:
        """See `Detector.loss_terms`."""
        return ('classes',)

    def losses(self, x: jax.Array, targets: Targets, maps: Maps) -> Losses:
        """See `Detector.losses`; `targets` also has `proposals` and `proposal_valid`."""
        def select(levels: Sequence[Level]) -> RoIs:
            return self.sample_regions(targets['proposals'], targets['proposal_valid'], targets)
        regions, logits, deltas = self.classify_regions(x, True, maps, select)
        return self.region_losses(regions, logits, deltas)

    def detections(self, x: jax.Array, proposals: Targets, train: bool, maps: Maps) -> Detections:
        """See `Detector.detections`. Without proposals, the image is the only one."""
        def select(levels: Sequence[Level]) -> RoIs:
            if proposals:
                return RoIs(proposals['proposals'], proposals['proposal_valid'])
            height, width = x.shape[1:3]
            image = jnp.array([0, 0, width, height], jnp.float32)
            return RoIs(jnp.broadcast_to(image, (len(x), 1, 4)), jnp.ones((len(x), 1), bool))
        return self.region_detections(*self.classify_regions(x, train, maps, select), x.shape[1:])

    @abc.abstractmethod
    def classify_regions(self, x: jax.Array, train: bool, maps: Maps, select: Callable[[Sequence[Level]], RoIs],
                         ) -> tuple[RoIs, jax.Array, jax.Array | None]:
        """Return regions, the logits of their classes (N, R, classes + 1), and regression targets (N, R, classes, 4).

        The regression targets are None for a network that does not refine boxes.

        Args:
          x: images (N, H, W, C).
          train: see `Network.__call__`.
          maps: see `Network.forward`.
          select: returns the regions; its argument are the levels of the feature maps. It is called once.
        """

    @nn.nowrap
    def sample_regions(self, proposals: jax.Array, valid: jax.Array, targets: Targets) -> RoIs:
        """Return the regions of a training step: a random sample of proposals and boxes of objects.

        Args:
          proposals: (N, P, 4).
          valid: (N, P), which proposals exist.
          targets: see `Detector.losses`.
        """
        def of_image(proposals: jax.Array, valid: jax.Array, targets: Targets) -> RoIs:
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
            return RoIs(proposals[drawn.indices], drawn.valid, labels, targets['boxes'][objects_of])
        return jax.vmap(of_image)(proposals, valid, dict(targets))

    @nn.nowrap
    def region_losses(self, regions: RoIs, logits: jax.Array, deltas: jax.Array | None) -> Losses:
        """Return the terms of the loss; for the arguments see `classify_regions`."""
        assert regions.labels is not None
        entropies = optax.softmax_cross_entropy_with_integer_labels(logits, regions.labels)
        return {'classes': jnp.where(regions.valid, entropies, 0).sum(1) / jnp.maximum(regions.valid.sum(1), 1)}

    @nn.nowrap
    def region_detections(self, regions: RoIs, logits: jax.Array, deltas: jax.Array | None,
                          shape: tuple[int, ...]) -> Detections:
        """Return the detections among regions; for the arguments see `classify_regions`."""
        shape_of_all = (*regions.boxes.shape[:2], self.num_classes)
        boxes = self.class_boxes(jnp.broadcast_to(regions.boxes[:, :, None], (*shape_of_all, 4)), deltas)
        labels = jnp.broadcast_to(jnp.arange(self.num_classes), shape_of_all)
        mask = jnp.broadcast_to(regions.valid[..., None], shape_of_all)
        count, scores = len(boxes), jax.nn.softmax(logits)[..., :-1]
        return self.select_detections(boxes.reshape(count, -1, 4), scores.reshape(count, -1), labels.reshape(count, -1),
                                      mask.reshape(count, -1), shape)

    @nn.nowrap
    def class_boxes(self, boxes: jax.Array, deltas: jax.Array | None) -> jax.Array:
        """Return the boxes of the detections of each class, (N, R, classes, 4), from those of the regions in this shape."""
        return boxes
