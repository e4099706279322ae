"""Everything of a run that changes from step to step, and how it is saved to a checkpoint and restored from one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from piip import rng
from piip.config.experiment import Config
from piip.engine import distributed
from piip.engine.checkpoint import load_trainer_state, point, prune, read_evaluation, save_checkpoint, write_evaluation
from piip.engine.evaluate import Evaluation
from piip.engine.fine_tuning import start_from
from piip.engine.freezing import freeze, frozen_parts
from piip.engine.meter import Meter
from piip.engine.optim import build_optimizer, describe_extension, parameter_groups
from piip.engine.parallel import Sharding, checkpoint_regions, make_mesh
from piip.engine.step import Step
from piip.errors import CheckpointError, DataError
from piip.load import build_model
from piip.model import Model
from piip.precision import compute_dtype, prepare, prepared_copy
from piip.weights.files import load_file, read_weights
from piip.weights.integrity import read_meta

_log = logging.getLogger(__name__)

# The entries of trainer.pt without which a run cannot go on.
_NEEDED = {"step", "epoch_length", "optimizer", "rng", "meter", "best"}


class RunState:
    """Weights, their moving average, the optimizer, sums for the next record, and the best evaluation so far.

    step: number of finished optimizer steps. metrics: those of the last evaluation. evaluated: whether the weights of
    this very step have been evaluated. loss: that of the newest step that was read. root: the folder of the
    checkpoints. epoch_length: optimizer steps per epoch. data: the fingerprints of the training and validation data,
    see `piip.engine.fingerprint`.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: torch.device,
        root: Path,
        class_names: list[str],
        epoch_length: int,
        data: Mapping[str, str],
    ) -> None:
        self.config, self.root, self.class_names, self.epoch_length = config, root, class_names, epoch_length
        self.data = dict(data)
        self.device, self.mesh = device, make_mesh(config.parallel, device)
        self.sharding: Sharding | None = None
        # Of processes that share a network, the main one alone has it whole, until what it is read from is handed out.
        elsewhere = self.mesh is not None and not distributed.is_main()
        with torch.device("meta") if elsewhere else nullcontext():
            self.model: Model = build_model(config.model)
        if self.mesh is None:
            self.model.to(device)
            checkpoint_regions(self.model, config.train.checkpoint_activations)
        freeze(self.model, config.train.freeze)
        self.optimizer = self._optimize(self.model.named_parameters())
        self.ema: ModelEmaV3 | None = None
        self.meter = Meter()
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.metrics: Mapping[str, float | None] = {}
        self.evaluated = False
        self.loss: float | None = None
        self._saved_step: int | None = None
        # The newest step and its learning rate, until its result is read.
        self._unread: tuple[Step, float] | None = None

    @property
    def evaluation_model(self) -> Model:
        """The model to evaluate: the moving average where there is one, unless the config asks for the weights."""
        return self.ema.module if self.ema is not None and self.config.train.evaluate_ema else self.model

    def evaluation_copy(self) -> Model:
        """A whole copy of the model to evaluate, in every process, ready for inference."""
        dtype = compute_dtype(self.device, self.config.train.precision)
        if self.sharding is None:
            return prepared_copy(self.evaluation_model, dtype)
        with torch.device("meta"):
            whole = build_model(self.config.model)
        whole.to_empty(device=self.device)
        averaged = self.ema is not None and self.config.train.evaluate_ema
        self.sharding.fill(whole, self.ema.module if self.ema is not None and averaged else self.sharding.shares)
        return prepare(whole, dtype)

    @property
    def position(self) -> dict[str, Any]:
        """Step and epoch, for records."""
        return {"step": self.step, "epoch": round(self.step / self.epoch_length, 4)}

    def start(self, weights: Path | None = None, *, partial: bool = False) -> None:
        """Begins a run, from pretrained branches where the config names some, or from the weights of another run.

        weights, partial: see `start_from`. Pretrained branches are then loaded only if the weights may be partial.
        Raises CheckpointError.
        """

        def read() -> None:
            if weights is None or partial:
                self.model.load_pretrained()
            if weights is not None:
                start_from(self.model, weights, self.class_names, partial=partial)

        if self.mesh is not None:
            distributed.on_main(read)
        else:
            with distributed.main_process_first():
                read()
        self._share()
        self._average()
        self._seed()

    def train_mode(self) -> None:
        """Puts the model into training mode, except for parts that are frozen as a whole."""
        self.model.train()
        for part in frozen_parts(self.model):
            part.eval()

    def resume(self, checkpoint: Path) -> None:
        """Restores everything as it was when the checkpoint was saved. Raises CheckpointError and DataError."""
        meta = read_meta(checkpoint, only=())
        names, data = meta["class_names"], meta.get("data", self.data)
        state = load_trainer_state(checkpoint, mapped=self.mesh is not None)
        if not state.keys() >= _NEEDED:
            raise CheckpointError(f"{checkpoint / 'trainer.pt'} does not hold the state of a training run")
        if names != self.class_names or state["epoch_length"] != self.epoch_length:
            raise DataError(
                f"the training data changed: {checkpoint} had {len(names)} classes and {state['epoch_length']} steps "
                f"per epoch, now it is {len(self.class_names)} and {self.epoch_length}; start a new run"
            )
        if data["train"] != self.data["train"]:
            raise DataError(
                f"the training data changed: images, annotations or classes are not those that {checkpoint} was "
                "trained on; start a new run, with --weights to keep what was learned"
            )
        if data["val"] != self.data["val"]:
            _log.warning("the validation data changed: metrics from here on cannot be compared with those before")
        if self.mesh is None:
            load_file(self.model, checkpoint / "model.safetensors")
        else:
            distributed.on_main(lambda: load_file(self.model, checkpoint / "model.safetensors"))
        self._share()
        self._average()
        self._load(checkpoint, state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        # Older checkpoints hold the sums of the main process only.
        meters = state["meter"] if isinstance(state["meter"], list) else [state["meter"]]
        self.meter = Meter(**meters[distributed.rank() if len(meters) == distributed.world_size() else 0])
        if checkpoint.resolve().parent == self.root.resolve():
            self._saved_step = self.step
        evaluation = read_evaluation(checkpoint)
        if evaluation is not None:
            self.evaluated, self.metrics, self.best = True, evaluation["metrics"], evaluation["best"]
        if len(state["rng"]) == distributed.world_size():
            rng.restore(state["rng"][distributed.rank()])
        else:
            self._seed()
            _log.warning("the number of processes changed from %d to %d", len(state["rng"]), distributed.world_size())
        _log.info("resumed from %s", checkpoint)
        self._tell_extension(meta["config"]["schedule"])

    def advance(self, step: Step, lr: float) -> None:
        """Counts a step that has been launched, at the learning rate `lr`."""
        self.step += 1
        self.evaluated = False
        self._unread = step, lr
        # Forward passes change the statistics of batch norms, which must be averaged before the next pass.
        if self.ema is not None and any(buffer.is_floating_point() for buffer in self.model.buffers()):
            self.read()

    def read(self) -> None:
        """Adds the newest step to the moving average and the sums, once. All ranks call it between the same two steps.

        It must be called before another step changes the weights. Raises NonFiniteLoss if the step was not finite and
        so has not changed the weights.
        """
        if self._unread is None:
            return
        (step, lr), self._unread = self._unread, None
        result = step.result()
        if self.ema is not None:
            self.ema.update(self._averaged, step=self.step)
        self.meter.add(result, lr)
        self.loss = sum(result.losses.values())

    def save(self) -> None:
        """Writes the checkpoint of this step, once. All ranks call it.

        Raises CheckpointError, and NonFiniteLoss, without saving, if the newest step was not finite.
        """
        self.read()
        if self._saved_step == self.step:
            return
        epoch, position = divmod(self.step, self.epoch_length)
        trainer = {
            "step": self.step,
            "epoch": epoch,
            "position": position,
            "epoch_length": self.epoch_length,
            "optimizer": self.optimizer.state_dict()
            if self.sharding is None
            else self.sharding.optimizer_state(self.optimizer),
            "rng": distributed.gather(rng.state()),
            "meter": distributed.gather(self.meter.state()),
            "best": self.best,
        }
        networks = {"model": self._averaged} | ({} if self.ema is None else {"ema": self.ema.module})
        whole = nn.Module.state_dict if self.sharding is None else self.sharding.whole
        weights = {name: whole(network) for name, network in networks.items()}
        config = self.config.model_dump(mode="json")

        def save() -> None:
            save_checkpoint(
                self.root,
                self.step,
                weights=weights,
                trainer=trainer,
                config=config,
                class_names=self.class_names,
                data=self.data,
            )
            prune(self.root, self.config.train.keep_checkpoints)

        distributed.on_main(save)
        self._saved_step = self.step

    def record_evaluation(self, found: Evaluation) -> None:
        """Stores the metrics of this step, also beside its checkpoint, and whether it is the best so far."""
        self.metrics, self.evaluated = found.metrics, True
        name, value = next(iter(found.metrics.items()))
        improved = value is not None and (self.best is None or value > self.best["value"])
        if improved:
            self.best = {"step": self.step, "name": name, "value": value}
        record = {"step": self.step, "best": self.best, **found.document}

        def store() -> None:
            write_evaluation(self.root / str(self.step), record)
            if improved:
                point(self.root, "best", self.step)
            prune(self.root, self.config.train.keep_checkpoints)

        distributed.on_main(store)

    def _tell_extension(self, planned: Mapping[str, Any]) -> None:
        """Says what becomes of the learning rate if the run is to take longer than planned in its checkpoint."""
        length, schedule = {unit: planned[unit] for unit in ("epochs", "iterations")}, self.config.schedule
        old = schedule.model_copy(update=length)
        if old != schedule:
            rate, step = self.config.optim.lr, self.step
            told = describe_extension(rate, old, schedule, iteration=step, epoch_length=self.epoch_length)
            _log.info("%s", told)

    def _average(self) -> None:
        settings = self.config.train
        if settings.ema is not None:
            self.ema = ModelEmaV3(self._averaged, decay=settings.ema, use_warmup=settings.ema_warmup)

    @property
    def _averaged(self) -> nn.Module:
        """What a moving average is taken of: the network, or this process's shares of it."""
        return self.model if self.sharding is None else self.sharding.shares

    def _optimize(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
        """The optimizer of parameters, or of shares of them, that have these names in the network."""
        groups = parameter_groups(
            named_parameters,
            self.model.layer_ids(),
            self.model.num_layers,
            self.config.optim,
            new=self.model.new_parameters(),
        )
        return build_optimizer(groups, self.config.optim)

    def _share(self) -> None:
        """Divides the network, which the main process has read, among the processes that are to share it."""
        if self.mesh is None:
            return
        config, whole = self.config, self.model if distributed.is_main() else None
        with torch.device("meta"):
            self.model = build_model(config.model)
        freeze(self.model, config.train.freeze)
        distributed.synchronize_norms(self.model, self.device)
        checkpoint_regions(self.model, config.train.checkpoint_activations)
        dtype = compute_dtype(self.device, config.train.precision)
        self.sharding = Sharding(self.model, self.mesh, config.parallel, device=self.device, dtype=dtype)
        self.sharding.load(whole)
        self.optimizer = self._optimize(self.sharding.shares.named())

    def _load(self, checkpoint: Path, optimizer: dict[str, Any]) -> None:
        """Restores the moving average and the optimizer."""
        if self.sharding is None:
            if self.ema is not None:
                load_file(self.ema.module, checkpoint / "ema.safetensors")
            self.optimizer.load_state_dict(optimizer)
            return
        if self.ema is not None:
            state = read_weights(checkpoint / "ema.safetensors")[0] if distributed.is_main() else {}
            self.sharding.load_state(self.ema.module, state)
        self.sharding.load_optimizer(self.optimizer, optimizer)

    def _seed(self) -> None:
        """Seeds every rank differently, also after a resumption with another number of processes."""
        rng.seed(self.config.train.seed + 1_000_003 * (distributed.rank() + 1) + 7919 * self.step)
