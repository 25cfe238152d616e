"""Whole models: where they come from, how their layers are walked, what calibration sees, how they are saved."""

from tersor.models.blocks import BlockStep, BlockWalk, check_propagation
from tersor.models.loading import load
from tersor.models.model import Model
from tersor.models.prefix import PrefixRunner
from tersor.models.structure import Blocks, find_blocks

__all__ = ["BlockStep", "BlockWalk", "Blocks", "Model", "PrefixRunner", "check_propagation", "find_blocks", "load"]
