"""The example script in an export: it classifies picture files by NumPy, Pillow and the runtime alone."""

import inspect
import json
from typing import Any

from jaxcnn.config import parse_calls
from jaxcnn.data import augment, picture, resizing
from jaxcnn.export.program import Program

_SCRIPT = '''"""Classify pictures with the exported network: python predict.py PICTURE...

It needs {packages}, and not jaxcnn.
"""

import json
import os
import sys
{typing}
import numpy as np
{imports}from PIL import Image, ImageOps

FOLDER = os.path.dirname(os.path.abspath(__file__))
HEIGHT, WIDTH, CHANNELS = {image_shape}
with open(os.path.join(FOLDER, 'classes.json'), encoding='utf-8') as f:
    CLASSES = json.load(f)['class_names']
{load}

{prepare}

def read(path):
    """Return the pixels of a picture file as viewers show it, uint8 (H, W, C), with transparent pixels over white."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith('I'):  # 16 bits
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return np.asarray(image.convert('L' if CHANNELS == 1 else 'RGB')).reshape(image.height, image.width, -1)


def load(path):
    """Return a picture file as an image for the network, uint8 (HEIGHT, WIDTH, CHANNELS)."""
    return prepare(read(path))


def main():
    """Print the {printed} of each picture, and return the exit status."""
    if len(sys.argv) == 1:
        raise SystemExit('usage: python predict.py PICTURE...')
    status = 0
    for path in sys.argv[1:]:
        try:
            image = load(path)
        except Exception as e:  # Pillow has many for files that are no pictures
            print(f'error: {{path}}: {{getattr(e, "strerror", None) or e}}', file=sys.stderr)
            status = 1
            continue
        probabilities = predict(image[None])[0]
        order = np.argsort(-probabilities, kind='stable')[:5]
        print(f'{{path}}: ' + ', '.join(f'{{CLASSES[i]}} {{100 * probabilities[i]:.2f}} %' for i in order))
    return status


if __name__ == '__main__':
    sys.exit(main())
'''

_RUNTIMES = {
    'onnx': ('onnxruntime, Pillow and NumPy (pip install onnxruntime pillow numpy)', 'import onnxruntime\n', '''
SESSION = onnxruntime.InferenceSession(os.path.join(FOLDER, 'model.onnx'), providers=onnxruntime.get_available_providers())


def predict(images):
    """Return the probabilities (N, classes) of images, uint8 (N, HEIGHT, WIDTH, CHANNELS)."""
    return SESSION.run(['probabilities'], {'images': images})[0]
'''),
    'stablehlo': ('JAX, Pillow and NumPy (pip install jax pillow numpy)', 'from jax import export\n', '''
with open(os.path.join(FOLDER, 'model.stablehlo'), 'rb') as f:
    EXPORTED = export.deserialize(bytearray(f.read()))


def predict(images):
    """Return the probabilities (N, classes) of images, uint8 (N, HEIGHT, WIDTH, CHANNELS)."""
    return np.asarray(EXPORTED.call(images)['probabilities'])
'''),
    'tensorflow': ('TensorFlow, Pillow and NumPy (pip install tensorflow pillow numpy)', 'import tensorflow as tf\n', '''
MODEL = tf.saved_model.load(os.path.join(FOLDER, 'saved_model'))


def predict(images):
    """Return the probabilities (N, classes) of images, uint8 (N, HEIGHT, WIDTH, CHANNELS)."""
    return MODEL.signatures['serving_default'](images=tf.constant(images))['probabilities'].numpy()
'''),
}

_RESIZE = {
    'crop': '''def prepare(image):
    """Return an image of any size, uint8 (H, W, C), as the network takes it: the largest central part of its proportions."""
    scale = min(image.shape[0] / HEIGHT, image.shape[1] / WIDTH)
    height, width = max(1, round(scale * HEIGHT)), max(1, round(scale * WIDTH))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return resize(image[top:top + height, left:left + width], HEIGHT, WIDTH)
''',
    'squash': '''def prepare(image):
    """Return an image of any size, uint8 (H, W, C), as the network takes it: with other proportions."""
    return resize(image, HEIGHT, WIDTH)
''',
    'pad': f'''def prepare(image):
    """Return an image of any size, uint8 (H, W, C), as the network takes it: in the middle of a grey one."""
    scale = min(HEIGHT / image.shape[0], WIDTH / image.shape[1])
    height, width = max(1, round(scale * image.shape[0])), max(1, round(scale * image.shape[1]))
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    padded = np.full((HEIGHT, WIDTH, CHANNELS), {resizing.PADDING}, np.uint8)
    padded[top:top + height, left:left + width] = resize(image, height, width)
    return padded
''',
}

_RESIZING = '''def resize(image, height, width):
    """Resize an image by antialiased bilinear interpolation."""
    if image.shape[:2] == (height, width):
        return image
    pixels = np.ascontiguousarray(image[..., 0] if CHANNELS == 1 else image)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(height, width, CHANNELS)


'''

_CROPS = '''CROPS = {crops}  # in order: the shorter side, or the height and the width


def prepare(image):
    """Return an image of any size, uint8 (H, W, C), as the network takes it: resized and cropped in one step."""
    top, left, height, width = 0.0, 0.0, *map(float, image.shape[:2])
    size = image.shape[:2]
    for name, *values in CROPS:
        if name == 'shorter_side':
            size = tuple(values[0] * side // min(size) for side in size)
        elif name == 'resize':
            size = tuple(values)
        else:
            scale_y, scale_x = height / size[0], width / size[1]
            y, x = (round((side - new) / 2) for side, new in zip(size, values))
            if size[0] < values[0] or size[1] < values[1]:
                raise ValueError(f'a picture of {{image.shape[1]}} x {{image.shape[0]}} pixels is too small')
            top, left, height, width = top + y * scale_y, left + x * scale_x, values[0] * scale_y, values[1] * scale_x
            size = tuple(values)
    box = tuple(round(v, 6) for v in (max(left, 0), max(top, 0), min(left + width, image.shape[1]),
                                      min(top + height, image.shape[0])))
    if box == (round(box[0]), round(box[1]), round(box[0]) + size[1], round(box[1]) + size[0]):
        return np.ascontiguousarray(image[round(box[1]):round(box[3]), round(box[0]):round(box[2])])
    pixels = np.ascontiguousarray(image[..., 0] if CHANNELS == 1 else image)
    resized = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR, box)
    return np.asarray(resized).reshape(*size, CHANNELS)
'''

_INK = '''INK = {ink}  # how the data set frames handwriting


{sources}
def prepare(image):
    """Return handwriting of any size, uint8 (H, W, C), as the network takes it: light on black, framed as in its data."""
    grey = image[..., 0] if image.shape[-1] == 1 else np.asarray(Image.fromarray(image).convert('L'))
    framed = np.ascontiguousarray(frame_ink(grey, INK)[..., 0])
    resized = Image.fromarray(framed).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.broadcast_to(np.asarray(resized)[..., None], (HEIGHT, WIDTH, CHANNELS)))
'''


def write(program: Program, runtime: str) -> str:
    """Return the script for a runtime, one of the formats that contain a program."""
    packages, imports, load = _RUNTIMES[runtime]
    kind = program.run.experiment.task.name
    typing = 'from collections.abc import Mapping\nfrom typing import Any\n' if program.run.info['ink'] else ''
    return _SCRIPT.format(packages=packages, typing=typing, imports=imports, load=load, image_shape=program.image_shape,
                          prepare=_prepare(program), printed='five most probable classes' if kind == 'classification'
                          else 'five classes with the highest probabilities')


def _prepare(program: Program) -> str:
    """Return the source of the function that brings a picture to the size of the run's images."""
    info, config = program.run.info, program.run.config.data
    if info['ink']:
        functions = (picture._otsu_threshold, picture._crop_ink, picture.frame_ink)
        sources = '\n\n'.join(inspect.getsource(function) for function in functions)
        return _INK.format(ink=json.dumps(info['ink']).replace('true', 'True').replace('false', 'False'),
                           sources=f'{sources}\n')
    crops, _ = augment.split_pipeline(config, train=False)
    if crops is None:
        return _RESIZING + _RESIZE[config.resize]
    return _CROPS.format(crops=_crop_operations(crops.text, config.shorter_side))


def _crop_operations(text: str, shorter_side: int | None) -> list[tuple[Any, ...]]:
    """Return the operations on files of a pipeline, each a name and its values."""
    operations: list[tuple[Any, ...]] = [('shorter_side', shorter_side)] if shorter_side else []
    for name, args, kwargs in parse_calls(text, 'config.data.eval_augment') if text else []:
        values = [*args, *kwargs.values()]
        operations.append((name, *values) if name == 'shorter_side' or len(values) == 2 else (name, values[0], values[0]))
    return operations


