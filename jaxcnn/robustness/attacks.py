"""The attacks by name. Each is a sequence of stages, which run one after the other on the images that still stand.

    fgsm, pgd(iterations=20, restarts=5), auto

An attack acts on images in [0, 1] before normalisation, and knows the network in evaluation mode.
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxcnn.config import bind, parse_call
from jaxcnn.config.arguments import check_number, check_whole_number
from jaxcnn.data.augment import adversarial
from jaxcnn.errors import UserError, name_field
from jaxcnn.registry import Registry
from jaxcnn.robustness.apgd import make_apgd
from jaxcnn.robustness.fab import make_fab
from jaxcnn.robustness.square import make_square
from jaxcnn.robustness.threat import Logits, Threat, targeted_logits_ratio

NORMS = adversarial.NORMS
# `(logits, keys, images, labels, targets, eps) -> images`, for images (N, H, W, C)
Apply = Callable[[Logits, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A pass of an attack over the images that still stand.

    Attributes:
      name: name of the stage in the report.
      apply: the function. Stages that share it are compiled once.
      draw: number of the stage among those with the same function; its random numbers depend on it.
      rank: of the class other than the label that is the target, by its logit, from 0; None: the target of the threat.
    """

    name: str
    apply: Apply
    draw: int = 0
    rank: int | None = None


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack as the user calls it.

    Attributes:
      text: the call.
      stages: its stages.
      is_ensemble: whether it stands for the worst case: an image that a smaller `eps` breaks counts as broken.
    """

    text: str
    stages: Sequence[Stage]
    is_ensemble: bool = False


# from what attacks may do, the number of classes and the arguments of the call to the stages
ATTACKS: Registry[Callable[..., Sequence[Stage]]] = Registry('attack')


def _register(factory: Callable[..., Sequence[Stage]]) -> Callable[..., Sequence[Stage]]:
    ATTACKS.add(factory.__name__, factory)
    return factory


@_register
def fgsm(threat: Threat, num_classes: int) -> Sequence[Stage]:
    """One step of size eps along the sign of the gradient of the cross-entropy, or, in L2, along the gradient (Goodfellow
    et al. 2015)."""
    def apply(logits: Logits, keys: jax.Array, images: jax.Array, labels: jax.Array, targets: jax.Array,
              eps: jax.Array) -> jax.Array:
        gradient = cross_entropy_gradient(threat, logits, labels, targets)
        return adversarial.ascend(images, images, gradient(images), eps, eps, threat.norm)
    return [Stage('fgsm', apply)]


@_register
def pgd(threat: Threat, num_classes: int, iterations: int = 20, restarts: int = 1, relative_step: float | None = None,
        random_start: bool = True) -> Sequence[Stage]:
    """Projected gradient ascent on the cross-entropy (Madry et al. 2018); its last iterate counts.

    Args:
      iterations: the number of steps.
      restarts: how often the attack is started on the images that still stand.
      relative_step: the size of a step as a fraction of eps; by default 2.5 / iterations.
      random_start: whether it starts at a point drawn uniformly within eps, instead of at the image.
    """
    check_whole_number('pgd', iterations=iterations, restarts=restarts)
    step = 2.5 / iterations if relative_step is None else relative_step
    check_number('pgd', relative_step=step)
    if restarts > 1 and not random_start:
        raise UserError('every restart would be the same', field='pgd.restarts', hint='set random_start=True')

    def apply(logits: Logits, keys: jax.Array, images: jax.Array, labels: jax.Array, targets: jax.Array,
              eps: jax.Array) -> jax.Array:
        gradient = cross_entropy_gradient(threat, logits, labels, targets)
        start = images
        if random_start:
            offsets = jax.vmap(lambda key, image: adversarial.random_offset(key, image, eps, threat.norm))(keys, images)
            start = jnp.clip(images + offsets, 0, 1)
        return adversarial.projected_ascent(images, start, {}, lambda x, _: gradient(x), eps, step * eps, iterations,
                                            threat.norm)
    return [Stage(f'pgd, start {draw + 1}' if restarts > 1 else 'pgd', apply, draw) for draw in range(restarts)]


def cross_entropy_gradient(threat: Threat, logits: Logits, labels: jax.Array,
                           targets: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return the function from images (N, H, W, C) to the gradients of the loss that the attack raises."""
    return jax.grad(lambda x: threat.cross_entropy(logits(x), labels, targets).sum())


@_register
def apgd_ce(threat: Threat, num_classes: int, iterations: int = 100, restarts: int = 1) -> Sequence[Stage]:
    """Auto-PGD on the cross-entropy (Croce & Hein 2020), which chooses its steps by itself."""
    check_whole_number('apgd_ce', iterations=iterations, restarts=restarts)
    apply = make_apgd(threat, threat.cross_entropy, iterations)
    return [Stage('apgd_ce', apply, draw) for draw in range(restarts)]


@_register
def apgd_dlr(threat: Threat, num_classes: int, iterations: int = 100, restarts: int = 1) -> Sequence[Stage]:
    """Auto-PGD on the difference of logits ratio (Croce & Hein 2020), which the scale of the logits does not change."""
    check_whole_number('apgd_dlr', iterations=iterations, restarts=restarts)
    check_classes('apgd_dlr', num_classes, 4 if threat.targeted else 3)
    apply = make_apgd(threat, threat.logits_ratio, iterations)
    return [Stage('apgd_dlr', apply, draw) for draw in range(restarts)]


@_register
def apgd_targeted(threat: Threat, num_classes: int, iterations: int = 100, targets: int = 9) -> Sequence[Stage]:
    """Auto-PGD on the targeted difference of logits ratio (Croce & Hein 2020), towards each of several classes.

    Args:
      iterations: the number of iterations for each class.
      targets: how many other classes, those with the largest logits first.
    """
    check_whole_number('apgd_targeted', iterations=iterations, targets=targets)
    check_classes('apgd_targeted', num_classes, 4)
    if threat.targeted:
        raise UserError('there is one target class already', field='apgd_targeted',
                        hint='use apgd_dlr, or leave out --target')
    apply = make_apgd(threat, targeted_logits_ratio, iterations)
    return _towards_largest('apgd_targeted', apply, min(targets, num_classes - 1))


@_register
def fab(threat: Threat, num_classes: int, iterations: int = 100, targets: int = 9) -> Sequence[Stage]:
    """The targeted fast adaptive boundary attack, which looks for the smallest change (Croce & Hein 2020).

    Args:
      iterations: the number of iterations for each class.
      targets: how many other classes, those with the largest logits first; with a target class, that one alone.
    """
    check_whole_number('fab', iterations=iterations, targets=targets)
    apply = make_fab(threat, iterations)
    if threat.targeted:
        return [Stage('fab', apply)]
    return _towards_largest('fab', apply, min(targets, num_classes - 1))


def _towards_largest(name: str, apply: Apply, count: int) -> Sequence[Stage]:
    """Return the stages towards each of the `count` other classes with the largest logits."""
    return [Stage(name, apply, rank, rank) for rank in range(count)]


@_register
def square(threat: Threat, num_classes: int, queries: int = 5000, share: float = 0.8) -> Sequence[Stage]:
    """The Square attack, a random search that needs no gradient (Andriushchenko et al. 2020).

    Args:
      queries: how often the network is applied to an image.
      share: share of the pixels that the first squares cover.
    """
    check_whole_number('square', queries=queries)
    check_number('square', 1e-4, 1, share=share)
    return [Stage('square', make_square(threat, queries, share))]


@_register
def auto(threat: Threat, num_classes: int, iterations: int = 100, queries: int = 5000) -> Sequence[Stage]:
    """The worst case of apgd_ce, apgd_dlr, apgd_targeted, fab and square, in the manner of AutoAttack (Croce & Hein 2020).

    The standard version of AutoAttack is the same without apgd_dlr. Attacks that need more classes than there are, are left
    out.

    Args:
      iterations: the number of iterations of Auto-PGD and of FAB.
      queries: the number of queries of the Square attack.
    """
    check_whole_number('auto', iterations=iterations, queries=queries)
    stages = [*apgd_ce(threat, num_classes, iterations)]
    if num_classes >= (4 if threat.targeted else 3):
        stages += apgd_dlr(threat, num_classes, iterations)
    if num_classes >= 4 and not threat.targeted:
        stages += apgd_targeted(threat, num_classes, iterations)
    return [*stages, *fab(threat, num_classes, iterations), *square(threat, num_classes, queries)]


def check_classes(name: str, num_classes: int, minimum: int) -> None:
    """Raise a UserError if an attack needs more classes."""
    if num_classes < minimum:
        raise UserError(f'needs {minimum} classes, and the run has {num_classes}', field=name, hint='use apgd_ce')


def describe_attacks() -> str:
    """Return a table of the attacks with their arguments and the first sentence of their docstrings."""
    lines = []
    for name, factory in ATTACKS.items():
        arguments = [p.replace(annotation=p.empty) for p in inspect.signature(factory).parameters.values()][2:]
        text = ' '.join((inspect.getdoc(factory) or '').partition('\n\n')[0].split())
        lines += [f'  {name}({", ".join(map(str, arguments))})', textwrap.indent(textwrap.fill(text, 100), '      ')]
    return '\n'.join(lines)


def parse(text: str, threat: Threat, num_classes: int, field: str = '--attacks') -> list[Attack]:
    """Return the attacks that a text such as `'fgsm, pgd(iterations=20)'` names; errors name the field.

    Raises:
      UserError: The text is not a list of calls, an attack is unknown or named twice, or does not take an argument.
    """
    try:
        node = ast.parse(text.strip(), mode='eval').body
    except (SyntaxError, ValueError):
        node = None
    calls = node.elts if isinstance(node, ast.Tuple) else [node]
    attacks: list[Attack] = []
    for call in calls:
        call_text = text.strip() if call is None else ast.unparse(call)
        name, args, kwargs = parse_call(call_text, field)
        function = functools.partial(ATTACKS.get(name, field), threat, num_classes)
        with name_field(field):
            attack = Attack(call_text, function(**bind(function, args, kwargs, f'the attack {name}')), name == 'auto')
        if attack.text.removesuffix('()') in [other.text.removesuffix('()') for other in attacks]:
            raise UserError(f'{attack.text} is named twice', field=field)
        attacks.append(attack)
    return attacks
