"""The published costs of M+ (arXiv 2502.00592): Table 1, the FLOPs table of appendix E.4, what is said of Figure 7."""

from __future__ import annotations

# Table 1: peak GPU memory on LongBook, MB.
MEMORY_MB = {
    "snapkv": 32_574.49,
    "full": 30_422.70,
    "mplus": 21_177.76,
    "window": 19_239.21,
    "mplus --offload": 17_973.34,
    "memoryllm": 21_176.24,
    "memoryllm --offload": 17_967.47,
}
SNAPKV_RETENTION_MB = 70_000.0  # and more: SnapKV with prompts of 48k tokens in the retention experiments (section 4.3)
MODELS = {"snapkv": "Llama-3.1-8B-SnapKV", "full": "Llama-3.2-3B-128k", "window": "Llama-3.1-8B-16k"}
# FLOPs of telling the text and one token: plain Llama, M+. None is out of memory.
FLOPS: dict[int, tuple[float | None, float]] = {
    2_048: (5.68e13, 6.92e13),
    4_096: (1.13e14, 1.32e14),
    8_192: (2.26e14, 2.55e14),
    16_384: (4.48e14, 5.01e14),
    32_768: (8.88e14, 9.86e14),
    65_536: (1.75e15, 1.94e15),
    131_072: (None, 3.78e15),
}
# Figure 7 has no numbers in print; the text says of it that offloading adds about one second, 3%, at 128k on an H100.
OFFLOAD_OVERHEAD, OFFLOAD_SECONDS = 0.03, 1.0
LATENCY_LENGTH = 131_072
