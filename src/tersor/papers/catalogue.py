"""The forty papers by key. A paper is implemented when ``papers/`` has the file named like its key."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# key | title | authors, year
_PAPERS = """
evopress | EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search | Sieberling, Kuznedelev, Kurtic, Alistarh, 2024
kolmogorov-test | The KoLMogorov Test: Compression by Code Generation | Yoran et al., 2025
squeeze3d | Squeeze3D: Your 3D Generation Model is Secretly an Extreme Neural Compressor | Dagli et al., 2025
attention-io | The I/O Complexity of Attention, or How Optimal is Flash Attention? | Saha, Ye, 2024
econtrol | EControl: Fast Distributed Optimization with Compression and Error Control | Gao, Islamov, Stich, 2024
mec-b | Minimum Entropy Coupling with Bottleneck | Ebrahimi, Chen, Khisti, 2024
lgreco | L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and Accurate Deep Learning | Markov et al., 2024
gradual-pruning | To prune, or not to prune: exploring the efficacy of pruning for model compression | Zhu, Gupta, 2017
trained-rank-pruning | Trained Rank Pruning for Efficient Deep Neural Networks | Xu et al., 2018
feature-mimicking | Unified Low-rank Compression Framework for Click-through Rate Prediction | Yu et al., 2024
misspecified-bandits | Does Sparsity Help in Learning Misspecified Linear Bandits? | Dong, Yang, 2023
llm-kick | Compressing LLMs: The Truth is Rarely Pure and Never Simple | Jaiswal et al., 2024
ldp-regression | Improved Analysis of Sparse Linear Regression in Local Differential Privacy Model | Zhu, Ding, Aggarwal, Xu, Wang, 2024
quest | QuEST: Stable Training of LLMs with 1-Bit Weights and Activations | Panferov et al., 2025
kappatune | The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units | Ludwig, 2025
equal-info | Training LLMs over Neurally Compressed Text | Lester et al., 2024
eora | EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation | Liu et al., 2024
lapp | LAPP: Layer Adaptive Progressive Pruning for Compressing CNNs from Scratch | Zhai et al., 2023
compressor | Compressing Pre-trained Models of Code into 3 MB | Shi et al., 2022
gear | GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM | Kang et al., 2024
lord | LoRD: Low Rank Decomposition of Monolingual Code LLMs for One-Shot Compression | Kaushal, Vaidhya, Rish, 2023
vqgan-codec | Extreme Image Compression using Fine-tuned VQGANs | Mao et al., 2024
walloc | Learned Compression for Compressed Learning | Jacobellis, Yadwadkar, 2024
tensor-attention | How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention | Alman, Song, 2024
compactifai | CompactifAI: Extreme Compression of Large Language Models using Quantum-Inspired Tensor Networks | Tomut et al., 2024
maestro | Maestro: Uncovering Low-Rank Structures via Trainable Decomposition | Horvath et al., 2024
cospadi | CoSpaDi: Compressing LLMs via Calibration-Guided Sparse Dictionary Learning | Makhov, Shopkhoev et al., 2025
pv-tuning | PV-Tuning: Beyond Straight-Through Estimation for Extreme LLM Compression | Malinovskii et al., 2024
compresso | Compresso: Structured Pruning with Collaborative Prompting Learns Compact Large Language Models | Guo et al., 2023
parameter-sharing | In defense of parameter sharing for model-compression | Desai, Shrivastava, 2024
generalization-measures | Fantastic Generalization Measures are Nowhere to be Found | Gastpar, Nachum, Shafer, Weinberger, 2024
entropic-student | Supervised Compression for Resource-Constrained Edge Computing Systems | Matsubara et al., 2022
quantum-lower-bounds | Quantum Lower Bounds for Finding Stationary Points of Nonconvex Functions | Zhang, Li, 2023
bitstack | BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments | Wang et al., 2025
sensitivity-sampling | Sharper Bounds for l_p Sensitivity Sampling | Woodruff, Yasuda, 2023
cs-ib | Cauchy-Schwarz Divergence Information Bottleneck for Regression | Yu et al., 2024
bandlimited-networks | How Powerful are Shallow Neural Networks with Bandlimited Random Weights? | Li, Sonoda, Cao, Wang, Liang, 2023
a-priori-conv | A priori compression of convolutional neural networks for wave simulators | Boukraichi et al., 2023
sap | Pruning Deep Neural Networks from a Sparsity Perspective | Diao et al., 2023
class-dependent | Class-dependent Compression of Deep Neural Networks | Entezari, Saukh, 2020
"""


@dataclass(frozen=True)
class Entry:
    """A paper of the catalogue and what was last measured of it.

    Attributes:
        key: What ``tersor reproduce`` takes.
        title: Its title.
        authors: Authors and year.
        implemented: Whether this version has its experiment.
        claim: The claim that is tested, once implemented.
        holds: Whether the claim held in the last full run, ``None`` if there was none.
        margin: By how much it held, in the claim's own measure.
    """

    key: str
    title: str
    authors: str
    implemented: bool = False
    claim: str = ""
    holds: bool | None = None
    margin: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        status = "planned" if not self.implemented else "not measured" if self.holds is None else "holds" if self.holds else "does not hold"
        return f"{self.key:<24} {status:<14} {self.title} ({self.authors})" + (f"\n{'':<24} {self.claim}" if self.claim else "")


def results_folder() -> Path:
    """Where full runs write their results: ``benchmarks/results/papers`` of the checkout, else of the working folder."""
    checkout = Path(__file__).resolve().parents[3]
    base = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    return base / "benchmarks" / "results" / "papers"


def catalogue() -> list[Entry]:
    """All forty papers in a fixed order, with the recorded result of those that were measured."""
    from tersor.papers.frame import find_paper

    entries = []
    for line in _PAPERS.strip().splitlines():
        key, title, authors = (part.strip() for part in line.split("|"))
        paper = find_paper(key)
        recorded = results_folder() / f"{key}.json"
        result = json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else {}
        entries.append(
            Entry(key, title, authors, paper is not None, paper.claim if paper else "", result.get("holds"), result.get("margin")),
        )
    return entries


def keys() -> list[str]:
    """The forty keys."""
    return [line.split("|")[0].strip() for line in _PAPERS.strip().splitlines()]
