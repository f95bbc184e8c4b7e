"""R-CNN (Girshick et al. 2014, "Rich feature hierarchies for accurate object detection and semantic segmentation")."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.detection.region_classifier import Level, RegionClassifier, RoIs
from jaxcnn.models.network import Maps, Network
from jaxcnn.ops.boxes import as_float
from jaxcnn.ops.region_parts import over_images, over_parts

WARPS = 'anisotropic', 'square_context', 'square_mean'


class RCNN(RegionClassifier):
    """R-CNN: a classifier of the regions of an image, with proposals from `config.data.proposals`.

    Each region is warped out of the image to the size that the classifier takes, and classified by itself; one more class
    stands for the background. This is the paper's fine-tuning. Its second stage, linear SVMs and a regression of boxes on
    the features of a trained run, is the command `jaxcnn fit_svms`. Without it, detections are the proposals themselves with
    the probabilities of the classes.

    Each image gives `roi_batch` regions in training, of which at most the fraction `roi_positive` overlaps an object with an
    IoU of at least `roi_high`; the others are background. With the defaults and a batch of one image they are the 32 and 96
    regions of the paper.

    Attributes:
      backbone: the classifier; any network that returns logits.
      region_size: height and width of a warped region in pixels.
      context: pixels around a region, at the warped size, that are also shown.
      warp: how a region is warped, see `warp_regions`.
      region_part: number of regions that are classified at a time in evaluation, which bounds the memory.
    """

    backbone: str = 'alexnet'
    region_size: int = 227
    context: int = 16
    warp: str = 'anisotropic'
    region_part: int = 64

    roi_batch: int = 128
    roi_low: float = 0.0

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.warp not in WARPS:
            raise unknown('warp', self.warp, WARPS)
        if not 0 <= 2 * self.context < self.region_size:
            raise UserError(f'context must be at least 0 and below half of region_size, got {self.context} and '
                            f'{self.region_size}')
        smallest = self.backbone_network().min_image_size()
        if self.region_size < smallest:
            raise UserError(f'region_size must be at least {smallest} for {self.backbone!r}, got {self.region_size}')
        if self.region_part < 1:
            raise UserError(f'region_part must be at least 1, got {self.region_part!r}')

    def backbone_fields(self) -> tuple[str, ...]:
        """See `Detector.backbone_fields`; all layers are the backbone's."""
        return (*super().backbone_fields(), 'kernel_init', 'bias_init', 'bias_init_layers')

    def check_backbone(self, backbone: Network) -> None:
        """See `Detector.check_backbone`; any classifier will do that returns one row of logits for each image."""
        if getattr(backbone, 'head', '') == 'dense_conv':
            raise UserError(f"R-CNN needs one row of logits for each region, and head='dense_conv' in {self.backbone!r} "
                            'gives a map of scores', hint="leave it 'dense', which has the same parameters")

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return 1

    def classifier_part(self) -> tuple[str, Network]:
        """See `Network.classifier_part`."""
        return 'backbone', self._classifier()

    @nn.nowrap
    def _classifier(self) -> Network:
        return self.backbone_network().clone(num_classes=self.num_classes + 1)

    @nn.nowrap
    def classify_regions(self, x: jax.Array, train: bool, maps: Maps, select: Callable[[Sequence[Level]], RoIs],
                         ) -> tuple[RoIs, jax.Array, jax.Array | None]:
        """See `RegionClassifier.classify_regions`."""
        classifier = self._classifier().clone(parent=self, name='backbone')
        regions = select(())
        if train or self.is_initializing():
            images = self.warp_images(x, regions.boxes)
            logits = classifier(images.reshape(-1, *images.shape[2:]), train)
            logits = logits[0] if isinstance(logits, tuple) else logits
            return regions, logits.reshape(*regions.boxes.shape[:2], -1).astype(jnp.float32), None
        network, variables = classifier.unbind()  # a loop of JAX must not call a module that is bound outside of it

        def classify_image(image: jax.Array, boxes: jax.Array) -> jax.Array:
            def classify(part: jax.Array) -> jax.Array:
                logits: jax.Array = network.apply(variables, self.warp_image(image, part))  # type: ignore[assignment]
                return logits
            return over_parts(classify, boxes, self.region_part)
        if len(x) == 1:
            logits = classify_image(x[0], regions.boxes[0])[None]
        else:
            logits = over_images(classify_image, x, regions.boxes)
        return regions, logits.astype(jnp.float32), None

    @nn.nowrap
    def warp_image(self, image: jax.Array, boxes: jax.Array) -> jax.Array:
        """Return the regions (R, region_size, region_size, C) of an image (H, W, C)."""
        return warp_regions(image, boxes, self.region_size, self.context, self.warp)

    @nn.nowrap
    def warp_images(self, x: jax.Array, boxes: jax.Array) -> jax.Array:
        """Return the regions (N, R, region_size, region_size, C) of images (N, H, W, C), for boxes (N, R, 4)."""
        def warp(image: jax.Array, boxes: jax.Array) -> jax.Array:
            return over_parts(lambda part: self.warp_image(image, part), boxes, self.region_part)
        return over_images(warp, x, jax.lax.stop_gradient(boxes))


@jax.named_scope('warp_regions')
def warp_regions(image: jax.Array, boxes: jax.Array, size: int, context: int = 16, mode: str = 'anisotropic') -> jax.Array:
    """Warp regions out of an image to one size (R-CNN's appendix A).

    - `anisotropic`: height and width are scaled independently.
    - `square_context`: the smallest square around the region is scaled.
    - `square_mean`: as `square_context`, but what is neither region nor context is replaced by the mean.

    The resizing is bilinear, and antialiased where a region becomes smaller. What is outside the image is the mean, too,
    which is 0 in a normalised image. Only pixels that are shown have an influence.

    Args:
      image: (H, W, C), normalised.
      boxes: (R, 4) in pixels of the image.
      size: height and width of the result, in pixels.
      context: width of the border around the region that is also shown, in pixels of the result.
      mode: see above.

    Returns:
      (R, size, size, C) in the type of the image; 0 for empty boxes.
    """
    boxes = as_float(boxes)
    starts, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    squares = sides if mode == 'anisotropic' else jnp.broadcast_to(sides.max(1, keepdims=True), sides.shape)
    lengths = squares * (size / (size - 2 * context))  # of the windows that are resized
    window_starts = starts + (sides - lengths) / 2
    borders = squares * (context / (size - 2 * context))
    shown_starts, shown_ends = window_starts, window_starts + lengths
    if mode == 'square_mean':
        shown_starts, shown_ends = starts - borders, starts + sides + borders
    is_empty = (sides <= 0).any(1)

    def matrices(axis: int) -> jax.Array:
        """Return the weights (R, size, pixels) of the pixels along an axis of the boxes in each row or column."""
        num_pixels = image.shape[1 - axis]
        low = jnp.maximum(shown_starts[:, axis], 0)[:, None]
        high = jnp.minimum(shown_ends[:, axis], num_pixels)[:, None]
        scale = lengths[:, axis, None] / size
        centers = window_starts[:, axis, None] + (jnp.arange(size) + 0.5) * scale
        is_shown = (centers > low) & (centers < high) & ~is_empty[:, None]
        pixels = jnp.arange(num_pixels) + 0.5
        support = jnp.maximum(scale, 1)[..., None]  # half the width of the triangular filter
        weights = jnp.maximum(1 - jnp.abs(pixels - centers[..., None]) / support, 0)
        # A pixel counts if any of it is shown, so that a region within a single pixel is not empty.
        weights = jnp.where((pixels + 0.5 > low[..., None]) & (pixels - 0.5 < high[..., None]), weights, 0)
        return jnp.where(is_shown[..., None], weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6), 0)

    rows, columns, dtype = matrices(1), matrices(0), image.dtype
    image = as_float(image)
    strips = jnp.einsum('rph,hwc->rpwc', rows, image, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum('rqw,rpwc->rpqc', columns, strips, precision=jax.lax.Precision.HIGHEST).astype(dtype)


MODELS: dict[str, tuple[type[Network], dict[str, Any]]] = {'rcnn': (RCNN, {})}
