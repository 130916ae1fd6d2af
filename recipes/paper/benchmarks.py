"""Where each benchmark's files lie below the data folder, in LLaVA's layout, and which of them are judged here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowcut.llava_files.scores import Score, score_answers


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        questions: its question file.
        images: its pictures or videos; empty where the question file holds them.
        annotations: what the answers are judged by here; empty where somebody else's tool or server judges them.
        max_new_tokens: longest answer; ``None`` for that of the file's form.
        language: of MMBench's instruction.
        videos: whether the questions are Video-LLaVA's.
    """

    questions: str
    images: str = ""
    annotations: str = ""
    max_new_tokens: int | None = None
    language: str = "en"
    videos: bool = False

    def is_there(self, data: Path) -> bool:
        """Whether its question file is in the data folder."""
        return (data / self.questions).is_file()

    def score(self, answers: Path, data: Path, asked: Sequence[object] | None) -> Score | None:
        """The published metric of an answer file, or ``None`` where the annotations are missing or not for us."""
        annotations = data / self.annotations
        if not self.annotations or not annotations.exists():
            return None
        return score_answers(answers, annotations, data / self.questions, asked)


def video(name: str, videos: str) -> Benchmark:
    """A benchmark of Video-LLaVA's evaluation."""
    folder = f"GPT_Zero_Shot_QA/{name}_Zero_Shot_QA"
    return Benchmark(f"{folder}/test_q.json", f"{folder}/{videos}", max_new_tokens=1024, videos=True)


BENCHMARKS = {
    "GQA": Benchmark("gqa/data/llava_gqa_testdev_balanced.jsonl", "gqa/data/images"),
    "MMB": Benchmark("mmbench/mmbench_dev_20230712.tsv"),
    "MMB-CN": Benchmark("mmbench_cn/mmbench_dev_cn_20231003.tsv", language="cn"),
    "MME": Benchmark("MME/llava_mme.jsonl", "MME/MME_Benchmark_release_version"),
    "POPE": Benchmark("pope/llava_pope_test.jsonl", "pope/val2014", "pope/coco"),
    "SQA": Benchmark("scienceqa/llava_test_CQM-A.json", "scienceqa/images/test", "scienceqa"),
    "VQAv2": Benchmark("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", "vqav2/test2015"),
    "TextVQA": Benchmark(
        "textvqa/llava_textvqa_val_v051_ocr.jsonl", "textvqa/train_images", "textvqa/TextVQA_0.5.1_val.json"
    ),
    "VizWiz": Benchmark("vizwiz/llava_test.jsonl", "vizwiz/test"),
    "SEED": Benchmark("seed_bench/llava-seed-bench.jsonl", "seed_bench"),
    "MMVet": Benchmark("mm-vet/llava-mm-vet.jsonl", "mm-vet/images", max_new_tokens=1024),
    "LLaVA-B": Benchmark(
        "llava-bench-in-the-wild/questions.jsonl", "llava-bench-in-the-wild/images", max_new_tokens=1024
    ),
    "TGIF": video("TGIF", "mp4"),
    "MSVD": video("MSVD", "videos"),
    "MSRVTT": video("MSRVTT", "videos/all"),
}
"""By the paper's columns. The layout is that of LLaVA's ``playground/data/eval`` and of Video-LLaVA's ``eval``."""
