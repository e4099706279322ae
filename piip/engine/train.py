"""The training loop, one for every task: it knows losses, batches and metrics, and nothing of what they are about."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from piip import rng
from piip.config import Config
from piip.data import (
    build_dataset,
    build_loader,
    check_classes,
    check_same_classes,
    check_targets,
    explain_worker_death,
)
from piip.engine import distributed
from piip.engine.device import peak_memory_mib
from piip.engine.evaluate import evaluate
from piip.engine.log import Bar, RunLog, logging_to
from piip.engine.optim import set_lr, total_iterations
from piip.engine.run_dir import prepare_run
from piip.engine.signals import StopSignals
from piip.engine.state import RunState
from piip.engine.step import optimizer_step

_log = logging.getLogger(__name__)


def train(
    config: Config, *, output: Path | None = None, device: str | None = None, resume: str | None = None
) -> dict[str, float]:
    """Trains the model of a config, under torchrun in all its processes; returns the metrics of the last evaluation.

    output: the run directory, runs/NAME by default; it must not hold a run unless it is resumed.
    device: 'auto' (or None), 'cpu', 'cuda' or 'cuda:N'.
    resume: 'auto' for the newest checkpoint in output if there is one, or a checkpoint or run directory.
    Raises Stopped after SIGTERM and KeyboardInterrupt after Ctrl-C, both with a checkpoint saved within a step;
    NonFiniteLoss where an update would have spoilt the weights, told at the latest when the next step has been computed
    and before it or any checkpoint is taken over; and the other kinds of PiipError.
    """
    output = output or Path("runs") / config.name
    with distributed.session(device) as target:
        checkpoint = distributed.on_main(lambda: prepare_run(output, config, resume))
        with logging_to(output / "train.log") as console, StopSignals() as stop, _deterministic(config):
            trainer: Trainer | None = None
            try:
                trainer = Trainer(config, output=output, device=target, stop=stop, console=console)
                return trainer.run(checkpoint)
            except (Exception, KeyboardInterrupt) as error:
                death = explain_worker_death(error) if isinstance(error, RuntimeError) else None
                _log.error("%s: %s", type(error).__name__, death or error, extra={"at_end": True})
                if death is not None:
                    raise death from None
                raise
            finally:
                if trainer is not None:
                    trainer.close()


class Trainer:
    """One process of a run: its share of the data, the state, and the loop that takes it from step to step."""

    def __init__(
        self, config: Config, *, output: Path, device: torch.device, stop: StopSignals, console: Console
    ) -> None:
        self.config, self.output, self.device, self.stop, self.console = config, output, device, stop, console
        rng.seed(config.train.seed)
        with distributed.main_process_first():
            train_data = build_dataset(config.data.train, training=True)
            val_data = build_dataset(config.data.val, training=False)
        check_classes(config.model.head.num_classes, train_data)
        check_same_classes(train_data, val_data)
        pin = device.type == "cuda"
        self.train_loader = build_loader(config, train_data, training=True, pin_memory=pin)
        self.val_loader = build_loader(config, val_data, training=False, pin_memory=pin)
        self.epoch_length = len(self.train_loader) // config.optim.accumulate
        self.total = total_iterations(config.schedule, self.epoch_length)
        self.state = RunState(
            config,
            device=device,
            root=output / "checkpoints",
            class_names=train_data.class_names,
            epoch_length=self.epoch_length,
        )
        check_targets(self.state.model.head.needs, train_data)
        self.wrapped: nn.Module = self.state.model
        self.log: RunLog | None = None

    def run(self, checkpoint: Path | None) -> dict[str, float]:
        """Trains from the checkpoint, or from the start, to the end. Returns the metrics of the last evaluation."""
        state = self.state
        if checkpoint is None:
            state.start()
        else:
            state.resume(checkpoint)
        if distributed.world_size() > 1:
            distributed.synchronize_norms(state.model, self.device)
            self.wrapped = DistributedDataParallel(state.model, gradient_as_bucket_view=True)
        state.model.train()
        log = self.log = RunLog(
            self.output, resumed_step=None if checkpoint is None else state.step, evaluated=state.evaluated
        )
        size = sum(parameter.numel() for parameter in state.model.parameters()) / 1e6
        _log.info("%s: %.1f M parameters on %d x %s", self.config.name, size, distributed.world_size(), self.device)
        _log.info("%d steps, %d an epoch, from step %d, in %s", self.total, self.epoch_length, state.step, self.output)
        # Killed between the checkpoint of an epoch and the end of its evaluation.
        if checkpoint is not None and not state.evaluated and self._due(self.config.train.eval_every):
            state.save()
            self._evaluate(log)
        with Bar(self.console, "training", total=self.total, done=state.step) as bar:
            while state.step < self.total:
                self._train_epoch(log, bar)
        return state.metrics

    def close(self) -> None:
        """Ends the loader processes and closes the files."""
        self.train_loader.close()
        self.val_loader.close()
        if self.log is not None:
            self.log.close()

    def _train_epoch(self, log: RunLog, bar: Bar) -> None:
        """Trains to the end of the current epoch, or of the run."""
        config, state = self.config, self.state
        epoch, done = divmod(state.step, self.epoch_length)
        self.train_loader.set_epoch(epoch)
        self.train_loader.set_start(done * config.optim.accumulate)
        batches = iter(self.train_loader)
        for _ in range(min(self.epoch_length - done, self.total - state.step)):
            lr = set_lr(
                state.optimizer,
                state.step,
                base=config.optim.lr,
                schedule=config.schedule,
                epoch_length=self.epoch_length,
            )
            step = optimizer_step(
                self.wrapped,
                state.optimizer,
                batches,
                config=config.optim,
                device=self.device,
                precision=config.train.precision,
                signal=int(self.stop.requested or 0),
                before_update=state.read,
            )
            state.advance(step, lr)
            logging_due = state.step % config.train.log_every == 0 or state.step == self.total
            evaluating = self._due(config.train.eval_every)
            if logging_due:
                state.read()
            loss = "" if state.loss is None else f"  loss {state.loss:.3f}"
            bar.advance(note=f"epoch {epoch + 1}{loss}")
            if logging_due:
                log.train(state.position | state.meter.take() | {"memory_mib": round(peak_memory_mib(self.device))})
            # Saved before it is evaluated, which takes long enough to be stopped in.
            if evaluating or step.signal or self._due(config.train.checkpoint_every):
                log.flush()
                state.save()
            if step.signal:
                raise self._stopped(step.signal)
            if evaluating:
                with bar.paused():
                    self._evaluate(log)

    def _evaluate(self, log: RunLog) -> None:
        def check() -> None:
            # The ranks do not agree on it first: one that leaves takes the others with it, and this step is saved.
            if self.stop.requested:
                raise self._stopped(self.stop.requested)

        # Where batch norms are not synchronised, every rank has seen other images; what is saved is the main one's.
        distributed.share_buffers(self.state.evaluation_model)
        with rng.preserved():
            found = evaluate(
                self.state.evaluation_model,
                self.val_loader,
                device=self.device,
                precision=self.config.train.precision,
                console=self.console,
                check=check,
            )
        log.evaluation(self.state.position | {"metrics": found.metrics, "seconds": round(found.seconds, 2)})
        log.draw()
        self.state.record_evaluation(found)

    def _due(self, every: int) -> bool:
        unit = self.epoch_length if self.config.schedule.epochs is not None else 1
        return self.state.step % (every * unit) == 0 or self.state.step == self.total

    def _stopped(self, signal: int) -> BaseException:
        step = self.state.step
        saved = self.output / "checkpoints" / str(step)
        return self.stop.error(signal, f"stopped at step {step} of {self.total}; saved {saved}, go on with --resume")


@contextmanager
def _deterministic(config: Config) -> Iterator[None]:
    """Switches torch's deterministic algorithms on for the block if the config wants them."""
    if not config.train.deterministic:
        yield
        return
    mode = torch.get_deterministic_debug_mode()
    # Read by cuBLAS when it is first used, which is later.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
