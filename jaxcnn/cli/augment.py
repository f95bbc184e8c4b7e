"""Draws what augmentation makes of pictures: a row for each op of a pipeline, and one for all of it.

Without a pipeline, a row for each op there is. Ops that attack a network, and a run's own pipeline and images, need the run:
--workdir.
"""

import argparse
import os

from jaxcnn import cli

EXAMPLES = (
    'pad_crop(16)', 'random_crop(96)', 'center_crop(96)', 'random_resized_crop(128)', 'scale_jitter(128, (128, 256))',
    'resize(48)', 'pad(8, "reflect")', 'flip_lr', 'alternating_flip', 'flip_ud', 'rotate(30)', 'translate(0.2)',
    'scale((0.6, 1.4))', 'shear(20)', 'affine(20, 0.1, (0.8, 1.2), 10)', 'brightness(0.5)', 'contrast(0.5)',
    'saturation(0.8)', 'hue(0.2)', 'color_jitter(0.4, 0.4, 0.4, 0.1)', 'grayscale(0.5)', 'invert', 'solarize(0.5)',
    'posterize(2)', 'equalize', 'autocontrast', 'sharpness(0.9)', 'channel_shift(0.3)', 'gaussian_noise(0.1)',
    'salt_and_pepper(0.1)', 'gaussian_blur(9, (0.5, 3.0))', 'cutout(48)', 'random_erasing(0.9)', 'mixup(1.0)',
    'cutmix(1.0)', 'auto_augment("cifar10")', 'auto_augment("imagenet")', 'rand_augment(2, 9)', 'trivial_augment',
    'fgsm(0.03)', 'pgd(0.03, 0.01, 10)',
)


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    if args.ops:
        from jaxcnn.data import augment
        print('\n'.join(map(augment.describe, augment.names())), end='')
        return 0
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxcnn import config, data, tasks
    from jaxcnn.analysis.figures import image_grid
    from jaxcnn.data import augment, decode, picture
    from jaxcnn.errors import UserError, counted
    from jaxcnn.run import load_run
    from jaxcnn.train.state import run_once
    from jaxcnn.train.step import image_gradient
    for name, value, least in (('--draws', args.draws, 1), ('--size', args.size, 8)):
        if value < least:
            raise UserError(f'{name}: expected at least {least}, got {value}')
    if len(args.images) > 2:
        raise UserError(f'--images: expected one or two, got {len(args.images)}')
    if args.workdir:
        trained = load_run(args.workdir)
        text = args.pipeline.strip() or trained.config.data.augment.strip()
        if not text:
            raise UserError(f'the run in {args.workdir!r} augments nothing: name a pipeline')
        task = trained.experiment.task
    else:
        text = args.pipeline.strip() or '|'.join(EXAMPLES)
        task = tasks.create(config.parse({}), ['first', 'second'], [1, 1], 2)
    parts = augment.parse_pipeline(text)
    assert parts is not None
    gradient = None
    if args.workdir:
        gradient = image_gradient(trained.experiment.network, trained.experiment.preprocessor, task,
                                  trained.variables)
    texts = [part.strip() for part in text.split('|')]
    rows = []
    for i, op in enumerate(parts.ops):  # each alone, but an attack after what comes before it, which may change the size
        start = 0 if isinstance(op, augment.Attack) and args.workdir else i
        rows.append(('|'.join(texts[start:i + 1]), augment.Pipeline(texts[i], parts.ops[start:i + 1])))
    if gradient is None and parts.has_attack:
        attacks = [part for part, row in rows if row.has_attack]
        if args.pipeline.strip():
            raise UserError(f'{attacks[0]} attacks a network: --workdir names the run whose network it is')
        cli.log.info('left out, as they attack a network, which --workdir names: %s', ', '.join(attacks))
        rows = [row for row in rows if row[0] not in attacks]
    if len(rows) > 1 and rows[-1][1].ops != parts.ops and text != '|'.join(EXAMPLES):
        rows.append((text, parts))

    if args.images:
        def load(path: str) -> np.ndarray:
            if args.workdir:
                return picture.load(path, trained.info, trained.config.data.resize)
            return decode.resize(picture.read(path, 'RGB'), (args.size, args.size), 'crop')
        images = [load(path) for path in args.images]
        targets = (task.targets_of(trained.predict(np.stack(images))) if args.workdir else
                   {'label': np.arange(len(images))})
    elif args.workdir:
        train = data.load(trained.config.data, task.kind).splits['train']
        positions = np.random.default_rng(args.seed).permutation(len(train))[:2]
        images, targets = list(train.take(positions)), train.take_targets(positions)
    else:
        from sklearn.datasets import load_sample_images
        images = [decode.resize(image, (args.size, args.size), 'crop') for image in load_sample_images().images]
        targets = {'label': np.arange(2)}
    first, second = (jnp.asarray(image, jnp.float32) / 255 for image in (images[0], images[-1]))

    keys = jax.random.split(jax.random.key(args.seed), args.draws)
    both = jnp.stack([second, first] * args.draws)
    examples = {'image': both, **{name: jnp.concatenate([jnp.asarray(values[[-1, 0]])] * args.draws)
                                  for name, values in targets.items()}}
    tiles, titles = [], []
    for _, row in rows:
        def augment_batch(keys: jax.Array, examples: dict, row: augment.Pipeline = row) -> dict:
            return row.batch(keys, examples, task, lambda x: jnp.roll(x, 1, 0), gradient)
        drawn = jax.jit(augment_batch, compiler_options=run_once())(jnp.repeat(keys, 2, 0), examples)
        augmented = {name: np.asarray(values)[1::2] for name, values in drawn.items()}
        tiles += [np.asarray(first), *augmented.pop('image')]
        titles += ['as it is', *(task.title({name: values[i] for name, values in augmented.items()}) if row.num_mixes else ''
                                 for i in range(args.draws))]
    path = args.out or os.path.join(args.workdir, 'figures', 'augmentations.png')
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        image_grid(tiles, titles, path, columns=args.draws + 1, headings=[part for part, _ in rows])
    except (OSError, ValueError) as e:  # the latter for a format that is not known
        raise UserError(f'{path}: cannot be written: {getattr(e, "strerror", None) or e}') from e
    print(f'{counted(len(rows), "row")}: {path}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('pipeline', nargs='?', default='',
                        help="as in config.data.augment: 'random_resized_crop(96)|flip_lr' (default: every op)")
    parser.add_argument('--ops', action='store_true', help='tell every op and its arguments, and draw nothing')
    parser.add_argument('--images', nargs='+', default=[], metavar='IMAGE',
                        help='a picture, and one to mix it with, else itself; of a run, labelled as its network sees them '
                        '(default: two photographs, or two images of the run)')
    parser.add_argument('--workdir', default='', help='a run: its pipeline, training images and, for attacks, its network')
    parser.add_argument('--size', type=int, default=128,
                        help='pictures are brought to this square, in pixels (default: 128)')
    parser.add_argument('--draws', type=int, default=7, help='columns (default: 7)')
    parser.add_argument('--seed', type=int, default=0, help='of all draws (default: 0)')
    parser.add_argument('--out', default='', metavar='FILE',
                        help='(default: figures/augmentations.png, in the workdir where there is one)')
    cli.main(parser, run)
