"""What happens to images and targets between the files and the network: one recipe a task, and batches."""

from piip.data.transforms.apply import transform
from piip.data.transforms.batch import normalise_and_pad, pad, prepare
from piip.data.transforms.resize import resize_image, resize_masks, resized_size
from piip.data.transforms.sample import Sample, generator

__all__ = [
    "Sample",
    "generator",
    "normalise_and_pad",
    "pad",
    "prepare",
    "resize_image",
    "resize_masks",
    "resized_size",
    "transform",
]
