"""WaLLoC: a linear encoder on wavelet packets, integers as the latent, a small decoder; for pictures and sounds."""

from tersor.coding.walloc.codec import Walloc, WallocCodec
from tersor.coding.walloc.latents import LatentTables
from tersor.coding.walloc.network import Compander, WallocConfig, WallocNetwork
from tersor.coding.walloc.training import WallocJob
from tersor.coding.walloc.wavelets import WaveletPacket

__all__ = ["Compander", "LatentTables", "Walloc", "WallocCodec", "WallocConfig", "WallocJob", "WallocNetwork", "WaveletPacket"]
