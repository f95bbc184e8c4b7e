"""The views by name, and how a request for some of them is parsed."""

import dataclasses
import functools
import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxcnn.config import bind, parse_calls
from jaxcnn.errors import UserError, unknown
from jaxcnn.explain import data_views, deconvnet_views, feature_views, response_views
from jaxcnn.explain.attribution_checks import compare_with_random_parameters, score_attributions
from jaxcnn.explain.attributions import METHODS, draw_attributions
from jaxcnn.explain.occlusion_maps import draw_occlusion_maps
from jaxcnn.explain.request import Request, Section

ATTRIBUTION = 'attribution'  # the section that shows all methods of attribution side by side

_NO_OPTIONS = 'methods', 'seed'  # of the command and not of a view
_CITATION = re.compile(r' \([A-Z][^()]* \d{4}(, "[^()]*")?\)')

# a view's first argument is the request, and the others are its options; its docstring's first line is its help text.
# A view with the keyword argument `methods` gets the methods of attribution in the same command, or all of them.
VIEWS: dict[str, Callable[..., Section]] = {
    'occlusion_maps': draw_occlusion_maps,
    'scores': score_attributions,
    'sanity_check': compare_with_random_parameters,
    'filters': feature_views.filters,
    'features': feature_views.features,
    'maximize': feature_views.maximize,
    'invert': feature_views.invert,
    'deconvnet': deconvnet_views.deconvnet,
    'evolution': deconvnet_views.evolution,
    'invariance': response_views.invariance,
    'receptive_field': response_views.receptive_field,
    'errors': data_views.errors,
    'confusion': data_views.confusion,
    'calibration': data_views.calibration,
    'embed': data_views.embed,
    'neighbors': data_views.neighbors,
}


# those that need feature maps and no logits
MAP_VIEWS = 'filters', 'features', 'invert', 'receptive_field'


def check_outputs(sections: Iterable[str], outputs: str) -> None:
    """Raise a UserError if a section needs logits and the network of a run returns other `outputs`."""
    others = [name for name in sections if name not in MAP_VIEWS]
    if outputs != 'logits' and others:
        raise UserError(f'{others[0]} needs a network that returns logits, and that of this run returns {outputs}',
                        field='VIEW', hint=f'possible: {", ".join(MAP_VIEWS)}; report.md of the run shows mistakes')


def names() -> list[str]:
    """Return the names of all views."""
    return [*METHODS, *VIEWS]


def descriptions() -> dict[str, str]:
    """Return for each view its options and the first sentence of its docstring."""
    texts = {}
    for name in names():
        function, first_option = (METHODS[name].function, 4) if name in METHODS else (VIEWS[name], 1)
        parameters = [*inspect.signature(function).parameters.values()][first_option:]
        fill = dict([METHODS[name].fill or ('', '')]) if name in METHODS else {}
        options = ', '.join(f'{p.name}={fill.get(p.name, p.default)!r}' for p in parameters if p.name not in _NO_OPTIONS)
        first_sentence = ' '.join((inspect.getdoc(function) or '').split('\n\n')[0].split())
        first_sentence = _CITATION.sub('', first_sentence)
        texts[name] = f'({options}) {first_sentence}' if options else first_sentence
    return texts


def parse(text: str, arguments: Sequence[str] = ()) -> tuple[dict[str, Callable[[Request], Section]], list[str]]:
    """Parse which views a user asks for.

    Args:
      text: one or several views, such as `'gradcam|integrated_gradients(steps=100)'`.
      arguments: picture files. Before them may be the `layer` of all views that have this option first, as in
        `conv4:3`.

    Returns:
      The functions that make the sections, by name, and the picture files. All attributions are drawn side by side in one
      section.

    Raises:
      UserError: A view is unknown or repeated, or does not take an argument, or not of this type.
    """
    sections: dict[str, Callable[[Request], Section]] = {}
    paths, layer = list(arguments), ''
    calls = parse_calls(text.replace('gradcam++', 'gradcam_plus_plus'), 'VIEW')
    counts = Counter(name for name, _, _ in calls)
    for name, count in counts.items():
        if count > 1:
            raise UserError(f'expected each view once, got {name!r} {count} times', field='VIEW', hint='a later section of '
                            'a view replaces the earlier one')
    methods = {name: dataclasses.replace(METHODS[name], options=_bind_options(
        METHODS[name].function, 4, args, kwargs, METHODS[name].title)) for name, args, kwargs in calls if name in METHODS}
    for name, args, kwargs in calls:
        if name in METHODS:
            sections[ATTRIBUTION] = functools.partial(draw_attributions, methods=methods)
        elif name in VIEWS:
            view = VIEWS[name]
            if _takes_layer(view) and not args and 'layer' not in kwargs:
                if not layer and paths and not os.path.exists(paths[0]):
                    layer = paths.pop(0)
                if layer:
                    kwargs['layer'] = layer
            if 'methods' in kwargs:
                raise UserError("the methods are views beside it, as in 'gradcam|saliency|scores'", field=name)
            options = _bind_options(view, 1, args, kwargs, name)
            if methods and 'methods' in inspect.signature(view).parameters:
                options['methods'] = methods
            sections[name] = functools.partial(view, **options)
        else:
            raise unknown('view', name, names(), field='VIEW')
    return sections, paths


def _bind_options(function: Callable[..., Any], num_inputs: int, args: Sequence[Any], kwargs: Mapping[str, Any],
                  description: str) -> dict[str, Any]:
    """Return options of a view as keyword arguments, after a check of their types.

    Args:
      function: the function of the view, whose first `num_inputs` arguments are no options. The type of an option is that
        of its default, unless its annotation is `Any`.
      num_inputs: see `function`.
      args, kwargs: the options.
      description: name of the view in errors.

    Raises:
      UserError: The view does not take an option, or not of this type.
    """
    options = bind(functools.partial(function, *[None] * num_inputs), args, kwargs, description)
    parameters = inspect.signature(function).parameters
    for name, value in options.items():
        default = parameters[name].default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_valid = is_number if isinstance(default, float) else type(value) is type(default)
        if not is_valid and parameters[name].annotation is not Any:
            raise UserError(f'expected a value of type {type(default).__name__}, got {value!r}',
                            field=f'{description}: {name}')
    return options


def _takes_layer(view: Callable[..., Section]) -> bool:
    """Return whether the first option of a view is `layer`."""
    return [*inspect.signature(view).parameters][1:2] == ['layer']
