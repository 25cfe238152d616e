"""Vector-quantised pictures: a grid of indices into a codebook, coded by what is around them, guessed where they were lost."""

from tersor.coding.image_vq.codec import ImageVQ, ImageVQCodec
from tersor.coding.image_vq.inpainting import IndexInpainter
from tersor.coding.image_vq.network import VQConfig, VQNetwork
from tersor.coding.image_vq.prior import IndexPrior
from tersor.coding.image_vq.training import ImageVQJob

__all__ = ["ImageVQ", "ImageVQCodec", "ImageVQJob", "IndexInpainter", "IndexPrior", "VQConfig", "VQNetwork"]
