"""SPP-Net (He et al. 2014, "Spatial pyramid pooling in deep convolutional networks for visual recognition", section 4)."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError
from jaxcnn.models.detection.region_classifier import HEAD_STD, Level, RegionClassifier, RoIs
from jaxcnn.models.layers import positive_ints
from jaxcnn.models.network import Maps, Network
from jaxcnn.models.plain import Plain
from jaxcnn.ops.boxes import area, as_float
from jaxcnn.ops.region_parts import over_images
from jaxcnn.ops.roi import map_to_features, stack_maps
from jaxcnn.ops.window_maxima import pool_windows


class SPPNet(RegionClassifier):
    """SPP-Net: classes of proposals from `config.data.proposals`, by a spatial pyramid on the feature maps of one pass.

    The feature maps are computed once for an image, at one or several scales. Each region is pooled from the scale at which
    its area is nearest to that of a square of `region_size` pixels. The bins of its pyramid pass two dense layers and the
    classifier, in which one more class stands for the background. Only these layers have gradients. Weight decay still acts
    on the convolutions, unless `config.optim.groups=(dict(match='^backbone/', rate=0.0),)` excludes them.

    This is the paper's fine-tuning. Its second stage, linear SVMs and a regression of boxes on the features of a trained
    run, is the command `jaxcnn fit_svms`. Without it, detections are the proposals themselves with the probabilities of the
    classes.

    With AlexNet, ZFNet and VGG as the backbone the dense layers are those of the classifier. Its weights fit if it was
    trained with `head='spp'` and the same `pyramid`; otherwise `config.init.exclude='Dense_0/'` draws the first of them at
    random. Other backbones have no such layers, and the network has two of its own, `fc6` and `fc7`, with `hidden` features
    and `dropout`.

    Attributes:
      scales: shorter sides, in pixels, to which images are resized; () for their own size. The paper has (480, 576, 688,
        864, 1200).
      region_size: side of the square to which the scale makes regions most similar, in pixels.
      pyramid: numbers of bins along a side, in the order of the levels.
      hidden: features of `fc6` and `fc7`, for backbones without dense layers of their own.
    """

    left_out_gradient: ClassVar[str] = 'how the regions depend on the convolutions'

    backbone: str = 'zfnet'
    scales: tuple[int, ...] = ()
    region_size: int = 224
    pyramid: tuple[int, ...] = (6, 3, 2, 1)
    hidden: int = 4096

    roi_batch: int = 128

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if not positive_ints(self.pyramid):
            raise UserError(f'pyramid must be positive integers, got {self.pyramid}')
        if self.scales and not positive_ints(self.scales):
            raise UserError(f'scales must be positive integers or (), got {self.scales}')
        smallest = self.backbone_network().min_image_size()
        if min(self.scales, default=smallest) < smallest:
            raise UserError(f'scales must be at least {smallest} for {self.backbone!r}, got {self.scales}')
        for name in ('region_size', 'hidden'):
            if getattr(self, name) < 1:
                raise UserError(f'{name} must be at least 1, got {getattr(self, name)!r}')

    def backbone_fields(self) -> tuple[str, ...]:
        """See `Detector.backbone_fields`; `fc6` and `fc7` have dropout where the backbone has no dense layers."""
        if isinstance(self.backbone_network(), Plain):
            return (*super().backbone_fields(), 'hidden', 'kernel_init')
        return tuple(name for name in super().backbone_fields() if name != 'dropout')

    def backbone_network(self) -> Network:
        """See `Detector.backbone_network`; BatchNorm uses its running statistics in training, too."""
        return super().backbone_network().clone(bn_frozen=True)

    @nn.nowrap
    def classify_regions(self, x: jax.Array, train: bool, maps: Maps, select: Callable[[Sequence[Level]], RoIs],
                         ) -> tuple[RoIs, jax.Array, jax.Array | None]:
        """See `RegionClassifier.classify_regions`."""
        backbone = self.backbone_network().clone(parent=self, name='backbone')
        name = backbone.region_input()[0]
        regions = select(())
        images = scaled_images(x, self.scales)

        def pool(features: Sequence[jax.Array]) -> jax.Array:
            pooled = pool_at_nearest_scale([jax.lax.stop_gradient(f) for f in features], regions.boxes, x.shape[1:3],
                                           [image.shape[1:3] for image in images], *backbone.map_geometry(name),
                                           self.pyramid, self.region_size)
            return pooled.reshape(-1, *pooled.shape[2:])  # regions of all images after each other

        others = [backbone.feature_maps(image, False, last=name)[name] for image in images[1:]]
        if isinstance(backbone, Plain):
            def pool_maps(backbone_maps: Maps) -> jax.Array:
                maps.update(backbone_maps)
                return pool([backbone_maps[name], *others])
            features = backbone.region_features(images[0], train, pool_maps)
        else:
            maps.update(backbone.feature_maps(images[0], False, last=name))
            features = pool([maps[name], *others])
            features = features.reshape(len(features), -1)
            for layer in ('fc6', 'fc7'):
                features = self.drop(nn.relu(self.dense(self.hidden, name=layer)(features)), train)
        logits = self.dense(self.num_classes + 1, name='classes', kernel_init=nn.initializers.normal(HEAD_STD[0]),
                            dtype=jnp.float32)(features)
        return regions, logits.reshape(*regions.boxes.shape[:2], -1), None


def scaled_images(x: jax.Array, scales: Sequence[int]) -> list[jax.Array]:
    """Return images (N, H, W, C) resized such that their shorter sides have the lengths `scales`; unchanged for none."""
    height, width = x.shape[1:3]
    sizes = [tuple(max(1, round(side * scale / min(height, width))) for side in (height, width)) for scale in scales]
    return [x if size == (height, width) else
            jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), 'linear', antialias=True).astype(x.dtype)
            for size in sizes or [(height, width)]]


@jax.named_scope('pool_at_nearest_scale')
def pool_at_nearest_scale(features: Sequence[jax.Array], boxes: jax.Array, image_size: Sequence[int],
                          sizes: Sequence[Sequence[int]], stride: int, first_center: float, levels: Sequence[int],
                          region_size: int = 224) -> jax.Array:
    """Return the spatial pyramid of each region, from the scale at which it has about `region_size` ** 2 pixels.

    All maps are put below each other, so that the regions are pooled once, whatever their scales.

    Args:
      features: the feature map (N, H', W', C) of each scale.
      boxes: (N, R, 4) in pixels of the original images.
      image_size: height and width of these.
      sizes: height and width of the image at each scale.
      stride, first_center: geometry of the feature maps; see `ops.roi.map_to_features`.
      levels: numbers of bins along a side.
      region_size: see above.

    Returns:
      (N, R, sum of level ** 2, C), as `ops.roi.spatial_pyramid_pool`.
    """
    boxes = jax.lax.stop_gradient(as_float(boxes))
    nearest, windows = jnp.full(boxes.shape[:-1], jnp.inf), jnp.zeros(boxes.shape, jnp.int32)
    stacked, first_rows = stack_maps(features)
    for x, (height, width), first_row in zip(features, sizes, first_rows, strict=True):
        factors = jnp.asarray([width / image_size[1], height / image_size[0]] * 2, jnp.float32)
        on_scale = boxes * factors
        distance = jnp.abs(area(on_scale) - region_size ** 2)
        of_scale = map_to_features(on_scale, x.shape[1:3], stride, first_center) + jnp.asarray([0, first_row] * 2)
        windows = jnp.where((distance < nearest)[..., None], of_scale, windows)
        nearest = jnp.minimum(distance, nearest)
    pooled = over_images(lambda image, windows: pool_windows(image, windows, tuple(levels)), as_float(stacked), windows)
    return pooled.astype(features[0].dtype)


MODELS: dict[str, tuple[type[Network], dict[str, Any]]] = {'spp_net': (SPPNet, {})}
