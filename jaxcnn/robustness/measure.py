"""Measures the robustness of a run: attacks, checks for masked gradients, corruptions, and images of other kinds."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxcnn.data import Dataset
from jaxcnn.data.augment.corruptions import check_channels, choose_constants
from jaxcnn.errors import UserError, unknown
from jaxcnn.evaluation.data import load_images_of_others
from jaxcnn.evaluation.predictions import check_is_classifier
from jaxcnn.robustness import attacks, evaluate_attacks, evaluate_corruptions, masking, outliers
from jaxcnn.robustness.result import AttackResults, CorruptionResults, OutlierResults, Result
from jaxcnn.robustness.threat import Threat
from jaxcnn.robustness.victim import Images, Victim, draw_images
from jaxcnn.run import Run


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
      attacks: the attacks, such as `'fgsm, pgd(iterations=20)'`; empty for none.
      eps: sizes of the changes.
      norm: their norm.
      target: a class, `random` or `least_likely` at which attacks aim; empty for none.
      checks: whether gradients are checked, with the largest of `eps`.
      corruptions: names of corruptions; see `evaluate_corruptions.parse_kinds`.
      severities: their severities.
      constants: whose constants; see `augment.corruptions.corruption`.
      reference: see `evaluate_corruptions.read_reference`; empty for none.
      ood_name, ood_dir, ood_split: data of other kinds, its folder and its split.
      split: split of the run's data.
      images: number of images of each data.
      batch_size: maximum number of images in a batch.
      seed: seed of all random numbers.
    """

    attacks: str = ''
    eps: Sequence[float] = ()
    norm: str = 'linf'
    target: str = ''
    checks: bool = False
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = (1, 2, 3, 4, 5)
    constants: str = 'auto'
    reference: str = ''
    ood_name: str = ''
    ood_dir: str = ''
    ood_split: str = ''
    split: str = 'test'
    images: int = 1000
    batch_size: int = 100
    seed: int = 0


class Measuring:
    """Measures the robustness of a run. All names are checked before anything is computed.

    Args:
      run: the run.
      dataset: its data.
      options: what is measured.

    Raises:
      UserError: The run is not of a classifier, or an option is wrong.
    """

    def __init__(self, run: Run, dataset: Dataset, options: Options):
        self._run, self._options = run, options
        check_is_classifier(run)
        self._victim = Victim(run.experiment, run.variables)
        self._threat = Threat(options.norm, bool(options.target))
        self._attacks = attacks.parse(options.attacks, self._threat, self._victim.num_classes) if options.attacks else []
        self._kinds = evaluate_corruptions.parse_kinds(options.corruptions)
        self._reference = evaluate_corruptions.read_reference(options.reference) if options.reference else None
        shape = self._victim.image_shape
        self._constants = choose_constants(shape) if options.constants == 'auto' else options.constants
        if self._kinds:
            check_channels(shape, '--corruptions')
        if self._reference:
            self._reference.check(self._kinds, options.severities, self._constants)
        self._class_names = [str(name) for name in run.info['class_names']]
        if options.target not in ('', 'random', 'least_likely', *self._class_names):
            error = unknown('class', options.target, self._class_names, field='--target')
            error.add_hint('or random, or least_likely')
            raise error
        self._outside = self._load_outside() if options.ood_name else None
        self._images = draw_images(self._victim, dataset, options.split, options.images, options.seed, options.batch_size)

    def _load_outside(self) -> np.ndarray:
        """Return images of other kinds as the network gets them, before normalisation: (N, H, W, C)."""
        options = self._options
        try:
            splits = load_images_of_others(self._run, options.ood_name, options.ood_dir)
        except UserError as e:
            flags = {'config.data.name': '--ood_name', 'config.data.dir': '--ood_dir', None: '--ood_name'}
            e.field = flags.get(e.field, e.field)
            raise
        split = options.ood_split or ('test' if 'test' in splits else next(iter(splits)))
        if split not in splits:
            raise unknown('split', split, splits, field='--ood_split')
        examples = splits[split]
        positions = np.sort(np.random.default_rng(options.seed).permutation(len(examples))[:options.images])
        return self._victim.pixels_of(lambda rows: examples.take(positions[rows]), len(positions), options.batch_size)

    def run(self) -> Result:
        """Return the results."""
        run, options = self._run, self._options
        logits = self._victim.all_logits(self._images.pixels, options.batch_size)
        result = Result(f'{run.config.model.name} on {run.info["name"]}', run.workdir, run.find_step(run.checkpoint),
                        options.split, len(self._images), options.seed,
                        float((logits.argmax(-1) == self._images.labels).mean()))
        if self._attacks:
            result = dataclasses.replace(result, attacks=self._attack(logits))
        if options.checks:
            attacker = self._attacker(Threat(options.norm), self._images, self._images.labels)
            result = dataclasses.replace(result, masking=masking.check(attacker, max(options.eps)))
        if self._kinds:
            result = dataclasses.replace(result, corruptions=self._corrupt())
        if self._outside is not None:
            separations = outliers.separate(logits, self._victim.all_logits(self._outside, options.batch_size))
            result = dataclasses.replace(
                result, outliers=OutlierResults(options.ood_name, len(self._outside), separations))
        return result

    def _attacker(self, threat: Threat, images: Images, targets: np.ndarray) -> evaluate_attacks.Attacker:
        return evaluate_attacks.Attacker(self._victim, threat, images, targets, self._options.seed,
                                         self._options.batch_size)

    def _attack(self, logits: np.ndarray) -> AttackResults:
        options, images, targets = self._options, self._images, self._images.labels
        if options.target:
            targets = self._targets(logits)
            rows = np.flatnonzero(targets != images.labels)
            if not len(rows):
                raise UserError(f'all images are of the class {options.target!r}', field='--target')
            images = Images(images.pixels[rows], images.labels[rows], images.positions[rows],
                            [images.names[int(row)] for row in rows])
            targets, logits = targets[rows], logits[rows]
        attacker = self._attacker(self._threat, images, targets)
        outcomes = evaluate_attacks.evaluate(attacker, self._attacks, sorted(options.eps))
        attacked = self._victim.all_logits(evaluate_attacks.worst_outcome(outcomes).images, options.batch_size).argmax(-1)
        return AttackResults(self._threat, options.target, images, logits.argmax(-1), attacked, attacker.reached_before,
                             outcomes)

    def _targets(self, logits: np.ndarray) -> np.ndarray:
        """Return the target class of each image, (N,) int32."""
        options, labels = self._options, self._images.labels
        num_classes = self._victim.num_classes
        if options.target == 'least_likely':
            return logits.argmin(-1).astype(np.int32)
        if options.target == 'random':
            drawn = [np.random.default_rng([options.seed, position]).integers(1, num_classes)
                     for position in self._images.positions]
            return ((labels + np.array(drawn)) % num_classes).astype(np.int32)
        return np.full(len(labels), self._class_names.index(options.target), np.int32)

    def _corrupt(self) -> CorruptionResults:
        options, images = self._options, self._images
        errors, examples = evaluate_corruptions.evaluate(
            self._victim, images, self._kinds, options.severities, self._constants, options.seed, options.batch_size)
        return CorruptionResults(errors, self._reference, images.pixels[0], examples)
