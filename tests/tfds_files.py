"""Prepared TFDS data sets, for tests."""

import io
import json

import numpy as np
from PIL import Image

VERSION = '3.0.1'


def write_tfds(folder, name, parts, broken=-1, classes=10, kind='PNG'):
    """A prepared TFDS data set, as `tfds build --file_format=array_record` leaves it, without TensorFlow.

    Args:
      folder: of all data sets.
      name: of this one.
      parts: split -> (images, labels); images of several sizes have file names beside them, as ImageNet's.
      broken: position of a training image whose bytes are no image.
      classes: how many.
      kind: of the images' files.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2
    from tensorflow_datasets.proto import tf_feature_pb2 as pb
    features = 'tensorflow_datasets.core.features'
    version = folder / name / VERSION
    version.mkdir(parents=True)
    splits, several = [], isinstance(parts['train'][0], list)
    for split, (images, labels) in parts.items():
        file = version / f'{name}-{split}.array_record-00000-of-00001'
        writer = ArrayRecordWriter(str(file), 'group_size:1')
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            encoded = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(encoded, kind)
            content = b'no image' if split == 'train' and i == broken else encoded.getvalue()
            writer.write(tf_example_pb2.Example(features=pb.Features(feature={
                'image': pb.Feature(bytes_list=pb.BytesList(value=[content])),
                **({'file_name': pb.Feature(bytes_list=pb.BytesList(value=[b'n0_%d.JPEG' % i]))} if several else {}),
                'label': pb.Feature(int64_list=pb.Int64List(value=[int(label)]))})).SerializeToString())
        writer.close()
        splits.append({'name': split, 'numBytes': '1', 'shardLengths': [str(len(labels))],
                       'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'})
    dimensions = ['-1', '-1', '3'] if several else [str(side) for side in parts['train'][0].shape[1:]]
    (version / 'dataset_info.json').write_text(json.dumps({
        'name': name, 'version': VERSION, 'fileFormat': 'array_record', 'splits': splits,
        'moduleName': f'tensorflow_datasets.image_classification.{name}'}))
    (version / 'features.json').write_text(json.dumps({
        'pythonClassName': f'{features}.features_dict.FeaturesDict', 'featuresDict': {'features': {
            'image': {'pythonClassName': f'{features}.image_feature.Image',
                      'image': {'dtype': 'uint8', 'shape': {'dimensions': dimensions}, 'encodingFormat': kind.lower()}},
            **({'file_name': {'pythonClassName': f'{features}.text_feature.Text', 'text': {}}} if several else {}),
            'label': {'pythonClassName': f'{features}.class_label_feature.ClassLabel',
                      'classLabel': {'numClasses': str(classes)}}}}}))
    (version / 'label.labels.txt').write_text('\n'.join(f'class {i}' for i in range(classes)))
    return version


def write_tfds_boxes(folder, name, parts, flag):
    """A prepared TFDS data set with boxes.

    Args:
      folder: of all data sets.
      name: of this one and its configuration, such as `voc/2007`.
      parts: split -> for each image, its pixels, and its objects as (label, box of TFDS, flag).
      flag: the name of a boolean feature of the objects.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2
    from tensorflow_datasets.proto import tf_feature_pb2 as pb
    version = folder / name / VERSION
    version.mkdir(parents=True)
    base, configuration = name.split('/')
    splits = []
    for split, examples in parts.items():
        writer = ArrayRecordWriter(str(version / f'{base}-{split}.array_record-00000-of-00001'), 'group_size:1')
        for image, objects in examples:
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, 'PNG')
            labels, boxes, flags = zip(*objects, strict=True) if objects else ((), (), ())
            writer.write(tf_example_pb2.Example(features=pb.Features(feature={
                'image': pb.Feature(bytes_list=pb.BytesList(value=[encoded.getvalue()])),
                'objects/label': pb.Feature(int64_list=pb.Int64List(value=labels)),
                f'objects/{flag}': pb.Feature(int64_list=pb.Int64List(value=map(int, flags))),
                'objects/bbox': pb.Feature(float_list=pb.FloatList(value=[side for box in boxes for side in box]))},
            )).SerializeToString())
        writer.close()
        splits.append({'name': split, 'numBytes': '1', 'shardLengths': [str(len(examples))],
                       'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'})
    tfds.features.FeaturesDict({'image': tfds.features.Image(), 'objects': tfds.features.Sequence({
        'label': tfds.features.ClassLabel(names=['ant', 'bee']), 'bbox': tfds.features.BBoxFeature(),
        flag: np.bool_})}).save_config(version)
    (version / 'dataset_info.json').write_text(json.dumps({
        'name': base, 'configName': configuration, 'version': VERSION, 'fileFormat': 'array_record', 'splits': splits,
        'moduleName': f'tensorflow_datasets.object_detection.{base}'}))
