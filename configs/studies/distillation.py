"""What does a small network learn from larger ones, and from an earlier one of its kind? Hinton et al. 2015 and others.

    jaxcnn study --study=distillation --workdir=runs/distillation --config.data.dir=DIR
    jaxcnn study --study=distillation:quick --workdir=runs/distillation_quick

DIR holds TFDS data sets (or set TFDS_DATA_DIR). The full form distils a ResNet of 56 layers, and an ensemble of them, into
one of 20 layers on CIFAR-10, by probabilities, feature maps (Romero et al. 2015) and attention (Zagoruyko & Komodakis 2017),
and trains two generations of born-again networks (Furlanello et al. 2018). The recipe is that of He et al. 2015, who give
errors of 8.75 and 6.97 % for the student and the teacher alone. In the quick form the students get 10 handwritten digits of
each class, and the teacher all of them, as in section 6 of Hinton et al. 2015; it needs no data.
Result of the quick form: alone 85.70 %, distilled 87.74 %, by three teachers 88.21 % (docs/compression.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study

ALONE, TEACHER = 'student alone', 'teacher'


def arms(teacher, hints, attention):
    """Return the arms; `teacher` changes the base config to that of the teacher."""
    def distilled(*teachers, **fields):
        return {'distillation': {'teachers': teachers, **fields}}
    return {
        TEACHER: teacher,
        ALONE: {},
        'distilled': distilled('arm:teacher'),
        'distilled from an ensemble': distilled('seeds:teacher'),
        'features': distilled('arm:teacher', alpha=0.0, hints=hints),
        'features first, then distilled': distilled('arm:teacher', hints=hints, hints_alone={'fraction': 0.2}),
        'attention': distilled('arm:teacher', alpha=0.0, hints=attention),
        'attention, distilled': distilled('arm:teacher', hints=attention),
        'born again': distilled('arm:student alone', temperature=1.0, alpha=0.5),
        'born again twice': distilled('arm:born again', temperature=1.0, alpha=0.5),
    }


def hint(teacher_map, student_map, **fields):
    return {'teacher_map': teacher_map, 'student_map': student_map, **fields}


def get_study():
    base = make(
        duration=dict(steps=64_000), batch_size=128, model=dict(name='resnet20_cifar'),
        data=dict(name='cifar10', augment='pad_crop(4)|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.1, l2=1e-4, decay_mask='',
                   schedule=dict(name='step', at=(dict(steps=32_000), dict(steps=48_000)), factor=0.1)))
    # the weight of 1000 in the code of Zagoruyko & Komodakis is for a mean over the pixels of the maps
    attention = [hint(f'stage{i}', f'stage{i}', method='attention', weight=1000 / side ** 2)
                 for i, side in ((1, 32), (2, 16), (3, 8))]
    return make_study(base, arms({'model.blocks': (9, 9, 9)}, [hint('stage2', 'stage2')], attention), seeds=5,
                      baseline=ALONE, published={ALONE: 1 - 0.0875, TEACHER: 1 - 0.0697},
                      title='ResNet-20 from ResNet-56 on CIFAR-10')


def get_quick_study():
    base = make(
        duration=dict(steps=600), batch_size=50,
        model=dict(name='sequential', layers='conv(8)|norm|relu|max_pool(2)|conv(16)|norm|relu|max_pool(2)|flatten|dense'),
        data=dict(name='digits', augment='pad_crop(1)', per_class=10),
        optim=dict(optimizer='adam', learning_rate=2e-3, schedule='cosine', warmup=dict(steps=50)),
        eval=dict(every=dict(fraction=0.25)), parallel=dict(steps_per_dispatch=50))
    teacher = {'data.per_class': 0, 'model.layers': 'conv(32)|norm|relu|conv(32)|norm|relu|max_pool(2)|'
               'conv(64)|norm|relu|conv(64)|norm|relu|max_pool(2)|flatten|dense(128)|relu|dropout(0.3)|dense'}
    attention = [hint(teacher_map, student_map, method='attention', weight=10.0)
                 for teacher_map, student_map in (('conv2', 'conv1'), ('conv4', 'conv2'))]
    return make_study(base, arms(teacher, [hint('conv4', 'conv2')], attention), seeds=3, baseline=ALONE,
                      title='A small network from 100 digits, and from a teacher who knows all of them')
