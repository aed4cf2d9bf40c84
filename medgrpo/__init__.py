"""medgrpo: train Qwen-VL policies with GRPO on medical visual question answering."""

__version__ = "0.1.0"
