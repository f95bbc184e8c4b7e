"""R-CNN and SPP-Net with the SVMs and the regression of boxes that `jaxcnn fit_svms` has fitted."""

import dataclasses
import functools
import os

import jax
import numpy as np

from jaxcnn import data
from jaxcnn.data import proposals
from jaxcnn.data.checks import check_images
from jaxcnn.errors import UserError, unknown
from jaxcnn.metrics import Measurement
from jaxcnn.models.detection import Detections
from jaxcnn.region_svms.second_stage import FILE_NAME, FeatureExtractor, SecondStage, detect_split, region_classifier
from jaxcnn.run import Evaluate, Run
from jaxcnn.training.checkpoint import fingerprint
from jaxcnn.training.state import Weights, variables


def with_svms(run: Run, feature: str) -> 'SVMRun':
    """Return a run that detects objects by its SVMs on a feature, and by its regression of boxes.

        run = with_svms(load_run('runs/rcnn'), 'fc7')
        detections = run.predict(images)
        mean_average_precision = run.evaluate('test')['test_map50']

    Args:
      run: a run of R-CNN or SPP-Net for which `jaxcnn fit_svms` was run.
      feature: name of a feature for which SVMs were fitted, such as `fc7`.

    Raises:
      UserError: The run is of another network, or there are no SVMs for its checkpoint or for the feature.
    """
    region_classifier(run)
    path, command = os.path.join(run.workdir, FILE_NAME), f'jaxcnn fit_svms --workdir={run.workdir}'
    try:
        stage = SecondStage.load(path)
    except FileNotFoundError:
        raise UserError(f'workdir {run.workdir!r} holds no SVMs (no {FILE_NAME})', hint=f'{command} fits them') from None
    if feature not in stage.svms:
        raise unknown('feature', feature, stage.svms)
    if fingerprint(run.variables) != stage.fingerprint:
        step = run.find_step(run.checkpoint)
        raise UserError(f'the SVMs were fitted for checkpoint {stage.step}, and not for the present checkpoint {step}',
                        field=path, hint=f'{command} --checkpoint={step} fits them again')
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    return SVMRun(**fields, stage=stage, feature=feature)


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class SVMRun(Run):
    """A run whose detections are those of SVMs and of a regression of boxes; see `with_svms`.

    The score of a detection is the logistic function of the SVM's score, so that 0.5 is its decision boundary.

    Attributes:
      stage: the SVMs and the regression of boxes.
      feature: the feature that the SVMs take.
    """

    stage: SecondStage
    feature: str

    @functools.cached_property
    def _extractor(self) -> FeatureExtractor:
        return FeatureExtractor(self, self.variables)

    def predict(self, images: np.ndarray) -> Detections:
        """See `Run.predict`."""
        images = check_images('images', images, self.info['image_shape'], self.config.data.resize)
        if not len(images):
            return super().predict(images)
        inputs = proposals.proposals_for(images, self.config.data)
        no_boxes = {'boxes': np.zeros((1, 4), np.float32), 'classes': np.zeros(1, np.int32), 'valid': np.zeros(1, bool),
                    'difficult': np.zeros(1, bool)}
        detections = []
        for i, image in enumerate(images):
            regions = self._extractor(image, {**no_boxes, **{name: x[i] for name, x in inputs.items()}})
            scores = self.stage.probabilities(regions, self.feature)
            detections.append(self._extractor.select(self.stage.refine(regions), scores, regions.is_proposal))
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *detections)
        map_boxes = functools.partial(self.experiment.preprocessor.map_boxes_back, image_shape=images.shape[1:])
        return self.experiment.task.map_back(stacked, map_boxes)

    def evaluator(self, split: str, data_dir: str = '', source: data.Source | None = None) -> Evaluate:
        """See `Run.evaluator`. Metrics are those of the detections by the SVMs, on features of a network of the weights."""
        dataset = self.load_dataset(data_dir, source)
        if split not in dataset.splits:
            raise unknown('split', split, dataset.splits)
        examples, task, ema = dataset.splits[split], self.experiment.task, self.experiment.best.ema
        stage = dataclasses.replace(self.stage, svms={self.feature: self.stage.svms[self.feature]})

        def evaluate(weights: Weights) -> tuple[int, dict[Measurement, float]]:
            detections = detect_split(FeatureExtractor(self, variables(weights)[ema]), examples, stage)
            values = task.compute(detections[self.feature, 'svm_boxes'])
            return len(examples), {Measurement(split, task.metrics[name], ema): value for name, value in values.items()}
        return evaluate
