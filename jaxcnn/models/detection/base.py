"""The base class of detectors, and what they share: the backbone, and the selection of detections."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import parse_call
from jaxcnn.errors import UserError, name_field
from jaxcnn.models.network import Maps, Network
from jaxcnn.models.registry import create
from jaxcnn.ops import boxes as box_ops
from jaxcnn.ops.nms import nms_per_class

Targets = Mapping[str, jax.Array]
# Detections of N images, as arrays with room for K detections each: `boxes` (N, K, 4) in pixels of the network's input,
# `scores` (N, K) in decreasing order, `classes` (N, K) int32, and `valid` (N, K), false for padding
Detections = dict[str, jax.Array]
Losses = dict[str, jax.Array]  # the terms of the loss of each image, (N,), by name
SHARED_FIELDS = 'dtype', 'param_dtype', 'conv_implementation', 'bn_frozen', 'bn_axis', 'remat'  # with the backbone


class Detector(Network):
    """The base class of networks that locate objects: they map images to boxes with classes and scores.

    A subclass implements `losses` and `detections`, extends `check` for its own fields, and sets `takes_proposals` if it
    needs the proposals of `config.data.proposals`.

    Attributes:
      backbone: the network whose feature maps are used: the name of a classifier, with fields that differ from its
        defaults, as in `"efficientnet_lite0(padding='symmetric')"`. Its parameters have the names that they have in the
        classifier, below `backbone`.
      max_detections: largest number of detections in an image.
      score_threshold: detections with a lower score are left out, in [0, 1).
      nms_threshold: of two detections of a class whose IoU exceeds this, the one with the lower score is left out.
    """

    outputs: ClassVar[str] = 'detections'
    takes_proposals: ClassVar[bool] = False

    backbone: str = 'resnet18'
    max_detections: int = 100
    score_threshold: float = 0.05
    nms_threshold: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        for name in ('score_threshold', 'nms_threshold'):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f'{name} must be in [0, 1), got {getattr(self, name)!r}')
        if self.max_detections < 1:
            raise UserError(f'max_detections must be at least 1, got {self.max_detections!r}')
        with name_field('backbone'):
            backbone = self.backbone_network()
            if isinstance(backbone, Detector):
                raise UserError(f'expected a classifier, got the detector {self.backbone!r}')
            self.check_backbone(backbone)
        for name in self.backbone_fields():
            if getattr(self, name) != getattr(type(self), name):
                raise UserError(f'{name} is a field of the backbone here, but it is {getattr(self, name)!r}',
                                hint=f'set {name}={getattr(type(self), name)!r}, its default, and '
                                f'backbone="{self.backbone.split("(")[0]}({name}={getattr(self, name)!r})" if you want it')

    def backbone_fields(self) -> tuple[str, ...]:
        """Return the fields that have no effect in the detector itself, only in its backbone."""
        return 'bn_momentum', 'bn_epsilon', 'dropout'

    def loss_terms(self) -> tuple[str, ...]:
        """Return the names of the terms of the loss, which `config.loss` can weight; () allows all."""
        return ()

    def check_backbone(self, backbone: Network) -> None:
        """Raise a UserError if the backbone lacks what the detector uses, which is its feature maps unless overridden."""
        backbone.steps(False)

    def strided_maps(self) -> dict[int, str]:
        """Return the name of the backbone's last feature map of each stride, in increasing order of strides."""
        backbone = self.backbone_network()
        return {backbone.map_geometry(step.name)[0]: step.name for step in backbone.steps(False)}

    def check_strides(self, strides: Iterable[int]) -> None:
        """Check that the backbone has feature maps of these strides.

        Raises:
          UserError: One is missing.
        """
        available = self.strided_maps()
        missing = [stride for stride in strides if stride not in available]
        if missing:
            raise UserError(f'{self.backbone!r} has no feature map of stride {missing[0]}, which a feature pyramid needs; '
                            f'its strides are {", ".join(map(str, sorted(available)))}', field='backbone',
                            hint='choose a ResNet, MobileNet v2 or EfficientNet-Lite, such as resnet18')

    def backbone_network(self) -> Network:
        """Return the backbone as a classifier.

        Raises:
          UserError: There is no such network, or it does not take an argument.
        """
        name, args, fields = parse_call(self.backbone, 'network')
        if args:
            raise UserError(f'a network takes fields by name, got {self.backbone!r}')
        shared = {field: getattr(self, field) for field in SHARED_FIELDS if field not in fields}
        return create(name, **fields).clone(**shared)  # without a check of types that only the check of gradients uses

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return max(32, self.backbone_network().min_image_size())

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`: COCO, whose images are scaled to a shorter side of 800 pixels."""
        return (800, 1344, 3), 80

    def classifier_part(self) -> tuple[str, Network]:
        """See `Network.classifier_part`."""
        return 'backbone', self.backbone_network()

    def check_output(self, output: Any) -> None:
        """See `Network.check_output`."""

    @abc.abstractmethod
    def losses(self, x: jax.Array, targets: Targets, maps: Maps) -> Losses:
        """Return the terms of the loss of each image.

        Args:
          x: images (N, H, W, C).
          targets: `boxes` (N, M, 4), `classes` (N, M), `valid` (N, M), `difficult` (N, M) and `key` (N,), a random key for
            each image; see `data.targets.ObjectBoxes`.
          maps: see `Network.forward`.
        """

    @abc.abstractmethod
    def detections(self, x: jax.Array, proposals: Targets, train: bool, maps: Maps) -> Detections:
        """Return the detections in images.

        Args:
          x: images (N, H, W, C).
          proposals: `proposals` (N, P, 4) and `proposal_valid` (N, P), for detectors that take them; or empty.
          train: normalise by the batch's statistics.
          maps: see `Network.forward`.
        """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False, *,  # type: ignore[override]
                 targets: Targets | None = None, proposals: Targets | None = None) -> Any:
        """Return the losses of images in training with targets, and otherwise the detections.

        Args:
          x: images (N, H, W, C), normalised as in training.
          train: apply dropout, and normalise by the batch's statistics.
          features: also return the feature maps.
          targets, proposals: see `losses` and `detections`.
        """
        if x.ndim != 4:
            raise UserError(f'{type(self).__name__} takes images (N, H, W, C), got an array of shape {x.shape}')
        self.check_image(x.shape[1:])
        maps: Maps = {}
        if train and targets is not None:
            output: Any = self.losses(x, targets, maps)
        else:
            output = self.detections(x, proposals or {}, train, maps)
        return (output, maps) if features else output

    def select_detections(self, boxes: jax.Array, scores: jax.Array, labels: jax.Array, mask: jax.Array,
                          shape: tuple[int, ...]) -> Detections:
        """Return the detections that non-maximum suppression leaves of the boxes of each class.

        Args:
          boxes: (N, R, 4).
          scores: (N, R).
          labels: (N, R), the classes.
          mask: (N, R), which boxes exist.
          shape: (H, W, ...) of the image, to which boxes are clipped.
        """
        boxes = box_ops.clip(boxes, *shape[:2])
        usable = mask & (scores >= self.score_threshold) & (box_ops.area(boxes) > 0)

        def select(boxes: jax.Array, scores: jax.Array, labels: jax.Array, usable: jax.Array) -> Detections:
            indices, valid = nms_per_class(boxes, scores, labels, self.nms_threshold, self.max_detections, usable)
            return {'boxes': jnp.where(valid[:, None], boxes[indices], 0), 'scores': jnp.where(valid, scores[indices], 0),
                    'classes': jnp.where(valid, labels[indices], 0).astype(jnp.int32), 'valid': valid}
        return jax.vmap(select)(boxes, scores, labels, usable)


def check_numbers(field: str, values: tuple[Any, ...], kind: type = float) -> None:
    """Check that a field holds numbers above 0, integers if `kind` is int.

    Raises:
      UserError: It does not.
    """
    kinds = (int, float) if kind is float else int
    if not all(isinstance(value, kinds) and not isinstance(value, bool) and value > 0 for value in values):
        raise UserError(f'{field} must be {"numbers" if kind is float else "integers"} above 0, got {values}')


def shared_fields(network: Network) -> dict[str, Any]:
    """Return the fields of a network that the modules within it share."""
    return {f.name: getattr(network, f.name) for f in dataclasses.fields(Network) if f.name in SHARED_FIELDS}
