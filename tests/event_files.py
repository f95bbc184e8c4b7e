"""TensorBoard's event files."""

import struct


def read_events(path):
    """Yield the TensorBoard events of a file, whose records are length, checksum, content and checksum."""
    from tensorboardX.proto.event_pb2 import Event
    data, offset = path.read_bytes(), 0
    while offset < len(data):
        length, = struct.unpack_from('<Q', data, offset)
        yield Event.FromString(data[offset + 12:offset + 12 + length])
        offset += 16 + length
