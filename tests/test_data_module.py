"""The data module under a real Trainer: what it refuses before training, what it feeds, and exact resume."""

from __future__ import annotations

import json
import warnings
from io import BytesIO
from itertools import pairwise
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from pyarrow import parquet
from tiny import processor_of

import data_modules.collate
from data_modules import CT, LesionGrading, MedicalVQADataModule, XRay
from data_modules.convert import convert
from data_modules.formats import write_jsonl
from medgrpo.types import MODALITIES, DataError, SettingsError

NUM_RECORDS = 11


class Recorder(LightningModule):
    """Stands in for the GRPO module: remembers the records of each step."""

    def __init__(self, num_iterations: int = 1, max_pixels: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.processor = processor_of("qwen2_5_vl")
        self.policy = SimpleNamespace(min_pixels=None, max_pixels=max_pixels)
        self.num_iterations = num_iterations
        self.seen: list[tuple[str, ...]] = []
        self.batches: list[object] = []
        self.evaluated: list[str] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(tuple(record.id for record in batch.records))
        self.batches.append(batch)
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.evaluated += [record.id for record in batch.records]

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(
        default_root_dir=folder, **({"enable_checkpointing": False, "num_sanity_val_steps": 0} | quiet | options)
    )


def save(path: Path, num_records: int = NUM_RECORDS, modality: str = "", image: str | None = None, **fields) -> str:
    """Our own JSONL; every record of it on one image, or on none."""
    row = {"question": "What is it?", "options": ["cyst", "mass"], "answer": "A", "modality": modality} | fields
    row |= {"images": [image]} if image else {}
    path.write_text("\n".join([json.dumps(row)] * num_records), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    Image.new("L", (56, 84), 100).save(tmp_path / "a.png")
    return {
        "train": save(tmp_path / "train.jsonl", image="a.png"),
        "val": save(tmp_path / "val.jsonl", 3),
        "image_root": str(tmp_path),
    }


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_each_batch_is_trained_on_as_often_as_it_is_cut_and_reused(files, tmp_path: Path, num_iterations: int) -> None:
    data = MedicalVQADataModule(**files, prompts_per_batch=4)
    module = Recorder(num_iterations)
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2).fit(module, data)
    repeats = 2 * num_iterations
    assert len(module.seen) == 2 * (NUM_RECORDS // 4) * repeats
    changes = [i + 1 for i, (a, b) in enumerate(pairwise(module.batches)) if a is not b]
    assert changes == list(range(repeats, len(module.seen), repeats))
    first, second = (set(sum(module.seen[e * 2 * repeats : (e + 1) * 2 * repeats], ())) for e in (0, 1))
    assert len(first) == len(second) == 8
    assert module.seen[0] != module.seen[2 * repeats]  # the second epoch has an order of its own
    assert module.evaluated == ["val-0", "val-1", "val-2"] * 2
    assert module.batches[0].pixel_values is not None


@pytest.mark.parametrize("num_iterations", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning_resumes_in_the_middle_of_the_data(files, tmp_path: Path, num_iterations, num_workers) -> None:
    def run(max_epochs: int = 3, ckpt_path: str | None = None, **options) -> Recorder:
        data = MedicalVQADataModule(**files, prompts_per_batch=4, num_workers=num_workers)
        module = Recorder(num_iterations)
        trainer(tmp_path, max_epochs=max_epochs, **options).fit(module, data, ckpt_path=ckpt_path)
        return module

    every = ModelCheckpoint(tmp_path / "ckpt", "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(callbacks=[every], enable_checkpointing=True, accumulate_grad_batches=1).seen
    steps_per_epoch = 2 * num_iterations
    assert len(whole) == 3 * steps_per_epoch
    steps = range(1, 3 * steps_per_epoch) if num_workers == 0 else [steps_per_epoch - 1]
    for step in steps:
        resumed = run(ckpt_path=str(tmp_path / "ckpt" / f"step={step}.ckpt")).seen
        assert resumed == whole[step:], step


def test_workers_that_stay_give_every_epoch_its_own_order(files, tmp_path: Path) -> None:
    def run(num_workers: int) -> Recorder:
        module = Recorder()
        data = MedicalVQADataModule(**files, prompts_per_batch=4, num_workers=num_workers)
        trainer(tmp_path, max_epochs=3).fit(module, data)
        return module

    others = set(active_children())
    alone, helped = run(0), run(1)
    assert set(active_children()) <= others  # Lightning has stopped them
    assert helped.seen == alone.seen
    assert helped.evaluated == alone.evaluated
    assert len({alone.seen[0], alone.seen[2], alone.seen[4]}) == 3


@pytest.mark.parametrize(
    ("num_workers", "device", "stay", "pinned"),
    [(0, "cuda", False, False), (2, "cpu", True, False), (2, "cuda", True, True)],
)
def test_loaders_with_workers_keep_them_and_pin_for_a_gpu(files, num_workers, device, stay, pinned) -> None:
    data = MedicalVQADataModule(**files, prompts_per_batch=4, num_workers=num_workers, on_bad_image="error")
    data.setup("fit")
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(
        strategy=strategy, global_rank=0, world_size=1, accumulate_grad_batches=1, lightning_module=Recorder()
    )
    for loader in (data.train_dataloader().loader, data.val_dataloader()):
        assert (loader.num_workers, loader.persistent_workers, loader.pin_memory) == (num_workers, stay, pinned)


def test_a_second_run_finds_its_images_processed(files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(image_cache: str | None) -> Recorder:
        module = Recorder()
        data = MedicalVQADataModule(**files, prompts_per_batch=4, image_cache=image_cache)
        trainer(tmp_path, max_epochs=1).fit(module, data)
        return module

    cache = str(tmp_path / "cache")
    plain, _ = run(None), run(cache)
    monkeypatch.setattr(data_modules.collate, "open_rgb", lambda *_: pytest.fail("decoded"))
    cached = run(cache)
    for one, other in zip(plain.batches, cached.batches, strict=True):
        assert torch.equal(one.pixel_values, other.pixel_values)
        assert torch.equal(one.input_ids, other.input_ids)


@pytest.mark.parametrize(("stage", "split"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_evaluation_sees_every_record_once(files, tmp_path: Path, stage: str, split: str) -> None:
    data = MedicalVQADataModule(**{split: files["train"]}, image_root=files["image_root"], eval_batch_size=4)
    module = Recorder()
    run = trainer(tmp_path)
    getattr(run, stage)(module, data)
    assert module.evaluated == [f"train-{i}" for i in range(NUM_RECORDS)]
    assert [record.id for record in data.records[split]] == module.evaluated


def test_fit_without_validation(files, tmp_path: Path) -> None:
    module = Recorder()
    data = MedicalVQADataModule(train=files["train"], image_root=files["image_root"], prompts_per_batch=4)
    trainer(tmp_path, max_steps=1).fit(module, data)
    assert len(module.seen) == 1
    assert module.evaluated == []


def test_batches_that_do_not_fit_the_trainer_are_refused(files, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts_per_batch=4 must be a multiple of trainer.accumulate_grad_batches=3"):
        trainer(tmp_path, accumulate_grad_batches=3).fit(Recorder(), MedicalVQADataModule(**files, prompts_per_batch=4))
    with pytest.raises(DataError, match="11 records do not fill one batch of prompts_per_batch=12 on each of 1 ranks"):
        trainer(tmp_path).fit(Recorder(), MedicalVQADataModule(**files, prompts_per_batch=12))


def test_missing_images_and_long_prompts_stop_before_training(files, tmp_path: Path) -> None:
    module = Recorder()
    bad = files | {"train": save(tmp_path / "bad.jsonl", image="b.png")}
    with pytest.raises(DataError, match="1 of 1 images cannot be used. Set image_root"):
        trainer(tmp_path).fit(module, MedicalVQADataModule(**bad))
    with pytest.raises(DataError, match="11 of 11 prompts cannot be used:\n  record train-0: .*max_prompt_length=20"):
        trainer(tmp_path).fit(module, MedicalVQADataModule(**files, max_prompt_length=20))
    assert module.seen == []


def test_the_policys_pixel_limits_are_used(files, tmp_path: Path) -> None:
    module = Recorder(max_pixels=28 * 28 * 4)
    trainer(tmp_path, max_steps=1).fit(module, MedicalVQADataModule(**files, prompts_per_batch=2))
    assert module.batches[0].image_grid_thw.prod(1).tolist() == [8, 8]  # 56 x 28 pixels, not 56 x 84


def test_a_stage_needs_its_files() -> None:
    data = MedicalVQADataModule()
    for stage, split in {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}.items():
        with pytest.raises(ValueError, match=f"{stage} needs data.{split}"):
            data.setup(stage)


def test_options_are_checked_together() -> None:
    with pytest.raises(ValueError, match="prompts_per_batch: .* got 0\nnum_workers: .* got -1\nmodalities: .*smell"):
        MedicalVQADataModule(prompts_per_batch=0, num_workers=-1, modalities=["CT", "smell"])
    with pytest.raises(ValueError, match="image_cache: expected a folder, .* got the file '.*test_data_module.py'"):
        MedicalVQADataModule(image_cache=__file__)


def test_filters_and_subsets(tmp_path: Path) -> None:
    mixed = [
        save(tmp_path / "ct.jsonl", 5, "CT", task="Lesion Grading"),
        save(tmp_path / "mr.jsonl", 6, "MR", task="own task"),
        save(tmp_path / "plain.jsonl", 7),
    ]

    def ids(data: MedicalVQADataModule) -> list[str]:
        data.setup("test")
        return [record.id for record in data.records["test"]]

    assert len(ids(MedicalVQADataModule(test=mixed))) == 18
    assert ids(MedicalVQADataModule(test=mixed, modalities=["MRI"])) == [f"mr-{i}" for i in range(6)]
    assert ids(MedicalVQADataModule(test=mixed, tasks=["own task"])) == [f"mr-{i}" for i in range(6)]
    assert ids(MedicalVQADataModule(test=mixed, tasks=["lesion_grading"])) == [f"ct-{i}" for i in range(5)]
    some = ids(MedicalVQADataModule(test=mixed, limit_eval_records=9, seed=1))
    assert len(some) == len(set(some)) == 9
    assert some == ids(MedicalVQADataModule(test=mixed, limit_eval_records=9, seed=1))
    assert some != ids(MedicalVQADataModule(test=mixed, limit_eval_records=9, seed=2))
    assert len(ids(MedicalVQADataModule(test=mixed, limit_train_records=2))) == 18
    with pytest.raises(DataError, match=r"none of 18 records is left .*'own task'.*kept: modality \['fundus'\]"):
        ids(MedicalVQADataModule(test=mixed, modalities=["fundus"]))
    with pytest.raises(DataError, match=r"record id 'ct-0' is in .*ct.jsonl and in .*List each file once"):
        ids(MedicalVQADataModule(test=[mixed[0], mixed[0]]))


def test_a_modality_module_keeps_its_own(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.jsonl", 2, "CT"), save(tmp_path / "b.jsonl", 3, "CXR"), save(tmp_path / "c.jsonl", 4)]
    data = XRay(test=paths)
    data.setup("test")
    assert [record.id for record in data.records["test"]] == [f"b-{i}" for i in range(3)] + [f"c-{i}" for i in range(4)]
    assert {record.modality for record in data.records["test"]} == {"xray"}  # c names none: it is taken to be X-ray
    with pytest.raises(DataError, match=r"\('xray', 'unknown'\).*kept: modality \['ct'\]"):
        CT(test=paths[1]).setup("test")


def test_a_task_module_keeps_its_own(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.jsonl", 2, task="Lesion Grading"), save(tmp_path / "b.jsonl", 2, task="x")]
    data = LesionGrading(test=paths)
    data.setup("test")
    assert [record.id for record in data.records["test"]] == ["a-0", "a-1"]


def test_there_is_one_module_per_modality() -> None:
    classes = [getattr(data_modules, name) for name in data_modules.__all__]
    assert sorted(cls.modality for cls in classes if cls.modality) == sorted(MODALITIES)
    assert len({cls.task for cls in classes if cls.task}) == 5


# ------------------------------------------------------------------------------------------ which records, which order


def counted(path: Path, passes: list[int], name: str = "train") -> str:
    """A file of pass counts, of 4, for the records of ``train.jsonl``."""
    rows = [{"id": f"{name}-{i}", "pass_count": n, "num_samples": 4} for i, n in enumerate(passes)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_training_keeps_records_by_pass_count(files, tmp_path: Path) -> None:
    difficulty = counted(tmp_path / "passes.jsonl", [0, 4, 1, 3, 2, 0, 4, 1, 3, 2, 0])
    data = MedicalVQADataModule(**files, difficulty=difficulty, pass_count=(1, 3))
    data.setup("fit")
    assert [record.id for record in data.records["train"]] == [f"train-{i}" for i in (2, 3, 4, 7, 8, 9)]
    assert len(data.records["val"]) == 3
    with pytest.raises(SettingsError, match=r"pass_count needs data\.difficulty"):
        MedicalVQADataModule(**files, pass_count=(1, 3))


def test_an_epoch_goes_from_easy_to_hard_and_resumes_there(files, tmp_path: Path) -> None:
    passes = [0, 4, 1, 3, 2, 0, 4, 1, 3, 2, 0]
    difficulty = counted(tmp_path / "passes.jsonl", passes)

    def run(ckpt_path: str | None = None, curriculum: str | None = "easy_to_hard") -> Recorder:
        data = MedicalVQADataModule(**files, prompts_per_batch=2, difficulty=difficulty, curriculum=curriculum)
        module = Recorder()
        every = ModelCheckpoint(tmp_path / "ckpt", "{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"callbacks": [every], "enable_checkpointing": True}
        trainer(tmp_path, max_epochs=2, **options).fit(module, data, ckpt_path=ckpt_path)
        return module

    whole = run().seen
    for epoch in (whole[:5], whole[5:]):
        counts = [passes[int(id.split("-")[1])] for batch in epoch for id in batch]
        assert counts == sorted(counts, reverse=True)
    assert whole[:5] != whole[5:]
    checkpoint = str(tmp_path / "ckpt" / "step=3.ckpt")
    assert run(checkpoint).seen == whole[3:]
    with pytest.raises(SettingsError, match="curriculum was"):
        run(checkpoint, curriculum=None)


def test_files_are_mixed_by_count_and_ratio(files, tmp_path: Path) -> None:
    other = save(tmp_path / "exam.jsonl", 8)
    files["train"] = [files["train"], other]
    data = MedicalVQADataModule(**files, prompts_per_batch=3, mix=[8, 4], curriculum="mixed")
    module = Recorder()
    trainer(tmp_path, max_epochs=1).fit(module, data)
    assert [sum(id.startswith("exam") for id in batch) for batch in module.seen] == [1, 1, 1, 1]
    with pytest.raises(SettingsError, match=r"mix: expected 2 counts, .*\[11, 8\]; got \[8, 9\]"):
        MedicalVQADataModule(**files, mix=[8, 9]).setup("fit")


def test_closed_questions_come_before_open_ones(files, tmp_path: Path) -> None:
    files["train"] = [save(tmp_path / "o.jsonl", 4, options=[]), save(tmp_path / "c.jsonl", 4, options=[], closed=True)]
    data = MedicalVQADataModule(**files, prompts_per_batch=4, curriculum="closed_to_open")
    module = Recorder()
    trainer(tmp_path, max_epochs=1).fit(module, data)
    assert [{id[0] for id in batch} for batch in module.seen] == [{"c"}, {"o"}]


def test_a_volume_enters_as_several_images(files, tmp_path: Path) -> None:
    pages = [Image.new("L", (56, 56), grey) for grey in (0, 50, 100, 150, 200, 250)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    files["train"] = save(tmp_path / "t.jsonl", 2, image="scan.tif")
    data = MedicalVQADataModule(**files, prompts_per_batch=2, frames_per_volume=3)
    module = Recorder()
    trainer(tmp_path, max_epochs=1).fit(module, data)
    [batch] = module.batches
    assert batch.images_per_prompt == (3, 3)
    assert [record.images for record in batch.records] == [("scan.tif[1]", "scan.tif[3]", "scan.tif[5]")] * 2
    assert [int(t.float().mean()) for t in batch.thumbnails] == [50, 50]


def test_validation_images_that_are_trained_on_are_told_before_training(files, tmp_path: Path) -> None:
    Image.new("L", (56, 84), 100).save(tmp_path / "b.png")
    others = save(tmp_path / "others.jsonl", 3, image="b.png")
    with pytest.warns(UserWarning, match=r"3 of 6 validation records \(50\.0 %\) show an image"):
        MedicalVQADataModule(**files | {"val": [save(tmp_path / "v.jsonl", 3, image="./a.png"), others]}).setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MedicalVQADataModule(**files | {"val": others}).setup("fit")


def test_images_inside_a_question_file_are_written_out_first(tmp_path: Path) -> None:
    picture = BytesIO()
    Image.new("L", (56, 84), 100).save(picture, "PNG")
    row = {"image": {"bytes": picture.getvalue(), "path": "a.png"}, "question": "Is it?", "answer": "yes"}
    parquet.write_table(pyarrow.Table.from_pylist([row] * 2), tmp_path / "q.parquet")
    data = MedicalVQADataModule(train=str(tmp_path / "q.parquet"), image_root=str(tmp_path))
    with pytest.raises(
        DataError, match=r"1 images are stored inside .* run `medgrpo data convert .* --save_images DIR`"
    ):
        data.setup("fit")
    converted = convert([tmp_path / "q.parquet"], save_images=tmp_path / "images", keep_duplicates=True)
    write_jsonl(tmp_path / "q.jsonl", converted.records)
    data = MedicalVQADataModule(train=str(tmp_path / "q.jsonl"), image_root=str(tmp_path / "images"))
    data.setup("fit")
    assert len(data.records["train"]) == 2


def test_a_folder_of_question_files_counts_as_one(files, tmp_path: Path) -> None:
    (tmp_path / "exams" / "deep").mkdir(parents=True)
    save(tmp_path / "exams" / "a.jsonl", 3)
    save(tmp_path / "exams" / "deep" / "b.jsonl", 2)
    data = MedicalVQADataModule(**files | {"train": [files["train"], str(tmp_path / "exams")]}, mix=[2, 5])
    data.setup("fit")
    assert [record.id[0] for record in data.records["train"]] == list("ttaaabb")
    save(tmp_path / "exams" / "deep" / "a.jsonl", 2)
    with pytest.raises(DataError, match=r"record id 'a-0' is in .*a\.jsonl and in .*deep/a\.jsonl"):
        data.setup("fit")
