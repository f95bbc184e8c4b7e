"""Faster R-CNN (Ren et al. 2015, "Faster R-CNN: towards real-time object detection with region proposal networks")."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.detection.base import Detections, Losses, Targets, check_numbers, shared_fields
from jaxcnn.models.detection.fast_rcnn import FastRCNN, smooth_l1
from jaxcnn.models.detection.region_classifier import Level, RoIs
from jaxcnn.models.detection.rpn import RPNHead
from jaxcnn.models.network import Maps, Network
from jaxcnn.ops import boxes as box_ops
from jaxcnn.ops.assign import match, sample
from jaxcnn.ops.nms import nms_per_class

PARTS = 'both', 'rpn', 'head'


class FasterRCNN(FastRCNN):
    """Fast R-CNN with a region proposal network (RPN) on the same feature maps.

    At each position of a feature map the RPN predicts, for each anchor, whether it shows an object and where exactly.
    Anchors with an IoU of at least `rpn_high` with an object, and the best anchors of each object, are positive; those with
    an IoU below `rpn_low` with all objects are negative. Each image gives `rpn_batch` anchors in training, at most the
    fraction `rpn_positive` of which is positive. The most probable `pre_nms` anchors of each feature map are decoded and
    clipped to the image, and after non-maximum suppression the best `post_nms` of an image are its proposals.

    The terms of the loss are those of `FastRCNN`, and `rpn_objectness`, the mean binary cross-entropy over the anchors of an
    image, and `rpn_boxes`, the smooth L1 loss of its positive anchors, divided by the number of all its anchors.

    torchvision's Faster R-CNN computes the same as this network with `roi_aligned=False`, for images whose sides are
    multiples of 64; for others its anchors are spaced by the side of the image divided by that of the feature map. Its
    proposals are in the order of sigmoid(logit), which puts ties where the sigmoid is 1.

    The paper's alternating training is a chain of runs with `trained='rpn'` and `trained='head'`; see docs/detection.md.

    Attributes:
      anchor_sizes: sides of square anchors, in pixels; with `fpn` one for each of `strides`, and one for a further level of
        half the resolution. By default eight times the stride with `fpn`, and else (128, 256, 512).
      anchor_ratios: heights of anchors over their widths.
      anchor_convention: `paper` or `torchvision`; see `ops.boxes.anchors`.
      anchors_inside: anchors that cross the edges of the image are left out in training, as in the paper.
      rpn_features: channels of the RPN's 3x3 convolution; 0 stands for those of the feature map.
      rpn_high, rpn_low, rpn_batch, rpn_positive: see above.
      rpn_beta: from where the RPN's smooth L1 loss is linear.
      pre_nms: number of anchors of each level before non-maximum suppression, in training and in evaluation.
      post_nms: number of proposals of an image, in training and in evaluation.
      rpn_nms: threshold of that suppression.
      min_side: smaller proposals are left out, in pixels.
      trained: `both`; or only the terms of the loss of the `rpn` or of the `head`.
    """

    takes_proposals: ClassVar[bool] = False
    left_out_gradient: ClassVar[str] = 'how the proposals depend on the parameters'

    anchor_sizes: tuple[float, ...] = ()
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_convention: str = 'torchvision'
    anchors_inside: bool = False
    rpn_features: int = 0
    rpn_high: float = 0.7
    rpn_low: float = 0.3
    rpn_batch: int = 256
    rpn_positive: float = 0.5
    rpn_beta: float = 1 / 9
    pre_nms: tuple[int, ...] = (2000, 1000)
    post_nms: tuple[int, ...] = (2000, 1000)
    rpn_nms: float = 0.7
    min_side: float = 0.001
    trained: str = 'both'

    fpn: bool = True
    roi_pool: str = 'align'
    roi_batch: int = 512
    roi_low: float = 0.0
    beta: float = 1 / 9
    nms_threshold: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.trained not in PARTS:
            raise unknown('trained', self.trained, PARTS)
        if self.anchor_convention not in box_ops.ANCHOR_CONVENTIONS:
            raise unknown('anchor_convention', self.anchor_convention, box_ops.ANCHOR_CONVENTIONS)
        if not 0 <= self.rpn_low <= self.rpn_high <= 1:
            raise UserError(f'0 <= rpn_low <= rpn_high <= 1 must hold, got {self.rpn_low} and {self.rpn_high}')
        if not 0 < self.rpn_positive <= 1 or self.rpn_batch < 1:
            raise UserError(f'rpn_positive must be in (0, 1] and rpn_batch at least 1, got {self.rpn_positive} and '
                            f'{self.rpn_batch}')
        for name in ('pre_nms', 'post_nms'):
            if len(getattr(self, name)) != 2:
                raise UserError(f'{name} must be two integers, for training and for evaluation, got {getattr(self, name)}')
            check_numbers(name, getattr(self, name), int)
        if self.fpn and self.anchor_sizes and len(self.anchor_sizes) != len(self.strides) + 1:
            raise UserError(f'anchor_sizes must be {len(self.strides) + 1} numbers, for {len(self.strides)} strides and a '
                            f'further level, got {self.anchor_sizes}')
        if not self.anchor_ratios:
            raise UserError('anchor_ratios must have at least one number')
        check_numbers('anchor_sizes', self.anchor_sizes)
        check_numbers('anchor_ratios', self.anchor_ratios)
        if not 0 <= self.rpn_nms < 1:
            raise UserError(f'rpn_nms must be in [0, 1), got {self.rpn_nms!r}')
        if self.rpn_beta <= 0 or self.rpn_features < 0 or self.min_side < 0:
            raise UserError('rpn_beta must be above 0, and rpn_features and min_side at least 0, got '
                            f'{self.rpn_beta!r}, {self.rpn_features!r} and {self.min_side!r}')

    def loss_terms(self) -> tuple[str, ...]:
        """See `Detector.loss_terms`."""
        terms = {'head': super().loss_terms(), 'rpn': ('rpn_objectness', 'rpn_boxes')}
        return (*terms['rpn'], *terms['head']) if self.trained == 'both' else terms[self.trained]

    def losses(self, x: jax.Array, targets: Targets, maps: Maps) -> Losses:
        """See `Detector.losses`."""
        rpn_losses: Losses = {}

        def select(levels: Sequence[Level]) -> RoIs:
            logits, deltas, anchors = self.predict_anchors(levels)
            rpn_losses.update(self.rpn_losses(jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1),
                                              jnp.concatenate(anchors), targets, x.shape[1:]))
            proposals = self.propose(logits, deltas, anchors, x.shape[1:], train=True)
            return self.sample_regions(proposals.boxes, proposals.valid, targets)
        head_losses = self.region_losses(*self.classify_regions(x, True, maps, select))
        return {**(rpn_losses if self.trained != 'head' else {}), **(head_losses if self.trained != 'rpn' else {})}

    def detections(self, x: jax.Array, proposals: Targets, train: bool, maps: Maps) -> Detections:
        """See `Detector.detections`; the RPN's proposals take the place of given ones.

        They are in the collection `intermediates` as `proposals` (N, P, 4) and `proposal_valid` (N, P), best first.
        """
        def select(levels: Sequence[Level]) -> RoIs:
            regions = self.propose(*self.predict_anchors(levels), x.shape[1:], train=False)
            self.sow('intermediates', 'proposals', regions.boxes)
            self.sow('intermediates', 'proposal_valid', regions.valid)
            return regions
        return self.region_detections(*self.classify_regions(x, train, maps, select), x.shape[1:])

    @nn.nowrap
    def predict_anchors(self, levels: Sequence[Level]) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """Return the objectness logits (N, A), the regression targets (N, A, 4) and the anchors (A, 4) of each level."""
        if self.fpn:
            coarsest = levels[-1]
            levels = [*levels, Level(coarsest.features[:, ::2, ::2], 2 * coarsest.stride)]
            defaults = [8.0 * level.stride for level in levels]
            sizes: list[tuple[float, ...]] = [(size,) for size in self.anchor_sizes or defaults]
        else:
            sizes = [self.anchor_sizes or (128, 256, 512)]
        # with its parent, because a backbone may be calling this method
        num_anchors = len(sizes[0]) * len(self.anchor_ratios)
        head = RPNHead(num_anchors=num_anchors, features=self.rpn_features, **shared_fields(self), name='rpn', parent=self)
        outputs = [head(level.features) for level in levels]
        anchors = [box_ops.anchors(level.features.shape[1], level.features.shape[2], level.stride,
                                   [size / level.stride for size in level_sizes], self.anchor_ratios, self.anchor_convention)
                   for level, level_sizes in zip(levels, sizes, strict=True)]
        return [logits for logits, _ in outputs], [deltas for _, deltas in outputs], anchors

    @nn.nowrap
    def rpn_losses(self, logits: jax.Array, deltas: jax.Array, anchors: jax.Array, targets: Targets,
                   shape: tuple[int, ...]) -> Losses:
        """Return the terms of the RPN's loss, for logits (N, A), regression targets (N, A, 4) and anchors (A, 4)."""
        inside = jnp.ones(len(anchors), bool)
        if self.anchors_inside:
            height, width = shape[:2]
            inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)

        def of_image(logits: jax.Array, deltas: jax.Array, targets: Targets) -> Losses:
            matches = match(anchors, targets['boxes'], targets['valid'], self.rpn_high, self.rpn_low, allow_low_quality=True,
                            ignored_boxes=targets['difficult'], usable=inside)
            drawn = sample(targets['key'], matches.labels == 1, matches.labels == 0, self.rpn_batch, self.rpn_positive)
            count = jnp.maximum(drawn.valid.sum(), 1)
            entropies = optax.sigmoid_binary_cross_entropy(logits[drawn.indices], drawn.is_positive)
            encoded = box_ops.encode(targets['boxes'][matches.indices[drawn.indices]], anchors[drawn.indices])
            errors = smooth_l1(deltas[drawn.indices] - encoded, self.rpn_beta).sum(-1)
            return {'rpn_objectness': jnp.where(drawn.valid, entropies, 0).sum() / count,
                    'rpn_boxes': jnp.where(drawn.valid & drawn.is_positive, errors, 0).sum() / count}
        return jax.vmap(of_image)(logits, deltas, dict(targets))

    @nn.nowrap
    def propose(self, logits: Sequence[jax.Array], deltas: Sequence[jax.Array], anchors: Sequence[jax.Array],
                shape: tuple[int, ...], train: bool) -> RoIs:
        """Return the proposals of images of a shape (H, W, ...); for the arguments see `predict_anchors`.

        Non-maximum suppression is applied to each level by itself.
        """
        pre_nms, post_nms = self.pre_nms[not train], self.post_nms[not train]
        boxes, scores, labels = [], [], []
        for level, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
            count = min(pre_nms, len(level_anchors))
            top_logits, top = jax.lax.top_k(jax.lax.stop_gradient(level_logits), count)
            top_deltas = jnp.take_along_axis(jax.lax.stop_gradient(level_deltas), top[..., None], axis=1)
            boxes.append(box_ops.clip(box_ops.decode(top_deltas, level_anchors[top]), *shape[:2]))
            scores.append(top_logits)
            labels.append(jnp.full(count, level, jnp.int32))
        level_labels = jnp.concatenate(labels)

        def select(boxes: jax.Array, scores: jax.Array) -> RoIs:
            sides = boxes[:, 2:] - boxes[:, :2]
            selection = nms_per_class(boxes, scores, level_labels, self.rpn_nms, post_nms, (sides >= self.min_side).all(1))
            return RoIs(jnp.where(selection.mask[:, None], boxes[selection.indices], 0), selection.mask)
        return jax.vmap(select)(jnp.concatenate(boxes, 1), jnp.concatenate(scores, 1))


MODELS: dict[str, tuple[type[Network], dict[str, Any]]] = {
    'faster_rcnn': (FasterRCNN, {}),
    # as in the paper: one feature map, whose regions pass the dense layers of VGG-16
    'faster_rcnn_vgg16': (FasterRCNN, {
        'backbone': 'vgg16', 'fpn': False, 'roi_pool': 'max', 'roi_batch': 128, 'nms_threshold': 0.3,
        'anchor_convention': 'paper', 'anchors_inside': True, 'pre_nms': (12000, 6000), 'post_nms': (2000, 300),
        'min_side': 16.0, 'beta': 1.0}),
}
