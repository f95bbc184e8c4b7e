"""The weights that a run started from."""

from typing import Any

import jax
import numpy as np

from jaxcnn.analysis.markdown import escape
from jaxcnn.errors import UserError
from jaxcnn.explain.request import Request
from jaxcnn.training import initialize, whiten
from jaxcnn.training.state import init_weights, run_once, variables


def initial_variables(request: Request) -> tuple[dict[str, Any] | None, str]:
    """Return the variables before the first step, and a sentence that says where they are from.

    They are drawn anew from the seed of the config, with the weights that `config.init` names and the filters of
    `config.whiten`. They are None if these weights cannot be read any more.
    """
    run = request.run
    config, network, image_shape = run.config, run.experiment.network, run.experiment.image_shape
    arrays: dict[str, Any] = {}
    note = f'The initial filters are drawn from the seed {config.seed} of the run.'
    template = jax.eval_shape(lambda: init_weights(network, image_shape, np.uint32(0), False))
    if config.init is not None:
        try:
            weights = initialize.load_initial_weights(
                config, network, {'params': template.params, 'batch_stats': template.batch_stats}, image_shape,
                run.info['class_names'])
        except UserError as e:
            return None, f'The run started from other weights, which cannot be read any more: {escape(str(e))}.'
        arrays = weights.arrays
        note = f'The run started from {escape(weights.source)}.'

    transform = (lambda params: params) if config.whiten is None else whiten.initializer(
        config.whiten, template.params, lambda count: whiten.sample_images(
            request.dataset.splits['train'], run.experiment.preprocessor, config.seed, count))
    init = jax.jit(lambda seed, arrays: init_weights(network, image_shape, seed, False, transform, arrays),
                   compiler_options=run_once())
    return variables(init(np.uint32(config.seed), arrays))[False], note
