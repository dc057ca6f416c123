"""Published results of M+ (arXiv 2502.00592v2) and MemoryLLM (arXiv 2402.04624v2), each number once.

Costs (Table 1, Figure 7, FLOPs) are in `profiling.published`. Scores are as printed: F1 and editing in per cent,
accuracies and LongBook as shares.
"""

from __future__ import annotations

SETS = ("2wikimqa", "hotpotqa", "qasper", "musique", "multifieldqa_en", "narrativeqa")
# M+ tables 2 and 3: QA-F1 of the sets above, and their mean as printed.
LONGBENCH: dict[str, tuple[float, ...]] = {
    "MemoryLLM-7B (20k)": (27.22, 34.03, 19.57, 13.47, 29.56, 20.64, 24.08),
    "Llama-3.1-8B (8k)": (34.87, 43.10, 29.96, 24.96, 43.18, 24.29, 33.39),
    "Llama-3.1-8B (16k)": (34.11, 44.72, 30.05, 31.96, 48.86, 25.19, 35.81),
    "M+ (8k)": (33.12, 37.99, 29.91, 20.68, 40.11, 24.18, 31.00),
    "M+ (16k)": (32.71, 38.56, 30.39, 24.58, 46.32, 24.12, 32.78),
    "MemoryLLM-8B (8k)": (32.30, 33.39, 23.88, 12.37, 35.91, 21.46, 26.55),
    "MemoryLLM-8B-Long (8k)": (32.23, 37.86, 31.62, 20.35, 42.16, 23.49, 31.29),
}
# MemoryLLM table 2: MemoryLLM-7B on 4k tokens that BM25 found; its 16k column is the first row above.
MEMORYLLM_BM25: tuple[float, ...] = (24.17, 32.27, 20.30, 15.36, 33.08, 15.60)

# M+ figure 2: LongBook-QA F1 and LongBook-Event-QA accuracy, from the authors' answers to reviewers, which give M+
# 0.1755 and 0.2470 in another place; Llama-3.2-3B was read off the figure, to about 0.01.
LONGBOOK: dict[str, tuple[float, float]] = {
    "mplus": (0.1752, 0.2476),
    "snapkv": (0.1625, 0.2297),
    "window": (0.1514, 0.2362),
    "bm25": (0.1623, 0.2065),
    "full": (0.169, 0.19),
}
# M+ figures 3 and 8: accuracy without any context.
BORDERLINE = {"squad": 0.09, "nq": 0.20}
# M+ section 4.6.1, called perplexity there; by size it is a mean loss in nats.
LOSS = {"M+": 1.9828, "Llama-3.1-8B": 1.9734}
# M+ figure 6: share of a context's tokens in long-term memory that is retrieved, and what chance would retrieve.
RETRIEVED, CHANCE = 0.30, 2_560 / 81_276

# MemoryLLM table 1, in per cent: score, efficacy, generalization, specificity. "EF": with editing facts.
EDITING: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "zsre": {
        "Llama2-7B": (55.6, 55.9, 54.7, 56.3),
        "MemoryLLM-7B": (51.2, 50.0, 49.1, 54.8),
        "FT": (50.3, 78.6, 80.6, 29.0),
        "FT-L": (69.8, 81.4, 76.8, 56.6),
        "ROME": (69.3, 88.7, 70.2, 56.3),
        "MemoryLLM-7B (w/ EF)": (79.2, 99.8, 96.7, 57.1),
    },
    "counterfact": {
        "Llama2-7B": (20.7, 13.7, 16.6, 83.4),
        "MemoryLLM-7B": (22.6, 15.7, 17.6, 82.1),
        "FT": (10.0, 99.7, 96.9, 3.6),
        "FT-L": (33.8, 47.2, 18.0, 83.3),
        "ROME": (69.2, 82.6, 75.2, 55.8),
        "IKE": (70.7, 99.8, 96.2, 45.4),
        "MemoryLLM-7B (w/ EF)": (75.3, 98.5, 82.2, 57.0),
    },
}
# MemoryLLM section 4.7: accuracy right after the context was told, by number of memory tokens of a write and place.
FIRST_STEP: dict[str, dict[str, float]] = {
    "K = 256 in all layers": {"nq": 0.46, "squad": 0.39},
    "K = 128": {"nq": 0.34, "squad": 0.25},
    "memory in the last half of the layers": {"nq": 0.39, "squad": 0.22},
}

# M+ table 4: documents of SlimPajama-627B by tokens (Llama-3.1): all, CommonCrawl, GitHub, ArXiv, C4, StackExchange,
# Wikipedia, Book.
SLIMPAJAMA: dict[str, tuple[int, ...]] = {
    "4k-8k": (11_189_999, 7_759_741, 692_224, 286_537, 1_825_018, 142_457, 481_854, 2_168),
    "8k-16k": (4_706_687, 3_273_619, 270_369, 550_192, 439_143, 20_313, 146_545, 6_535),
    "16k-32k": (1_607_064, 968_714, 95_445, 423_401, 70_223, 1_510, 34_323, 13_448),
    "32k-64k": (443_438, 224_168, 32_653, 146_582, 3_413, 102, 5_940, 30_580),
    "64k-128k": (192_515, 72_583, 11_753, 27_942, 38, 5, 507, 79_687),
    "128k+": (98_097, 23_721, 4_523, 5_167, 0, 2, 49, 64_635),
}
